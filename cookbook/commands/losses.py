"""Losses from the command line: list, show, diff, check."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import tyro

from ...datums.errors import ConfigError, UnknownLossError
from ...losses import (
    UNPUBLISHED,
    LossCard,
    Preset,
    compare_losses,
    describe_loss,
    describe_preset,
    get_loss,
    list_losses,
    list_presets,
    plugin_errors,
)
from ...losses.cards.braille import draw
from ...losses.cards.card import card_of
from ...losses.cards.curves import Curve, curve_of
from ...losses.cards.sample_inputs import usable
from ...losses.loss.loss import Loss
from ...losses.loss.mixture import Mixture
from ...losses.variants.presets import find_preset
from ..extras import require
from ..run.configs import Setting


def list_all_losses(presets: bool = False, json: bool = False) -> None:
    """All registered losses by family, those of plug-ins included; plug-ins that failed to load on stderr.

    Args:
        presets: list the presets instead: other systems' losses, as settings of ours.
        json: print a list of cards (or of presets) as JSON instead.
    """
    if presets:
        found = [describe_preset(name) for name in list_presets()]
        if json:
            _print_json([dataclasses.asdict(preset) for preset in found])
        else:
            print("\n".join(_preset_listing(found)))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken plug-ins are printed below
        cards = [describe_loss(name) for name in list_losses()]
    if json:
        _print_json([card.as_dict() for card in cards])
    else:
        print("\n".join(_listing(cards)))
    for name, why in plugin_errors().items():
        print(f"plug-in {name!r} failed to load: {why}", file=sys.stderr)


def _listing(cards: Sequence[LossCard]) -> list[str]:
    """A line a loss, in columns, under its family; a pipe gets whole formulas, a terminal what fits."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    cells = {card.name: (card.name, ", ".join(card.aliases), card.per, card.reduction) for card in cards}
    widths = [max(len(row[i]) for row in cells.values()) for i in range(4)]
    lines: list[str] = []
    for family in sorted({card.family for card in cards}):
        members = [card for card in cards if card.family == family]
        lines += ["", f"{family} ({len(members)})"]
        for card in members:
            columns = "  ".join(f"{cell:<{w}}" for cell, w in zip(cells[card.name], widths, strict=True))
            lines.append(_cut(f"  {columns}  {card.formula}", width))
    lines += ["", f"not offered ({len(UNPUBLISHED)})"]
    lines += [_cut(f"  {name:<{widths[0]}}  {why}", width) for name, why in UNPUBLISHED.items()]
    count = f"{len(cards)} losses, {len(list_presets())} presets (--presets)"
    return [f"{count}; `lossbook losses show ID` shows one", *lines]


def _preset_listing(presets: Sequence[Preset]) -> list[str]:
    """A line a preset under its system: which loss of ours, and its settings."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    longest = max(len(preset.name) for preset in presets)
    lines: list[str] = []
    for system in dict.fromkeys(preset.name.partition(":")[0] for preset in presets):
        members = [preset for preset in presets if preset.name.startswith(f"{system}:")]
        lines += ["", f"{system} ({len(members)})"]
        lines += [_cut(f"  {one.name:<{longest}}  {get_loss(one.name)!r}", width) for one in members]
    return [
        f"{len(presets)} presets; `lossbook losses show NAME` says where one was read and what it leaves out",
        *lines,
    ]


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else f"{line[: width - 1]}…"


def show_loss(name: tyro.conf.Positional[str], json: bool = False) -> None:
    """Print a loss's card, and its curve: the loss and its gradient along the quantity that it is about.

    Args:
        name: an id or an alias (`lossbook losses list` lists them), a preset, or module:function.
        json: print the card and the points of the curve as JSON instead.
    """
    loss = usable(name)
    shown = _shown(loss)
    preset = find_preset(name)
    if json:
        parts = [{**card.as_dict(), "curve": curve and dataclasses.asdict(curve)} for card, curve in shown]
        whole = parts[0] if len(parts) == 1 else {"name": name, "parts": parts}
        _print_json(whole if preset is None else {**whole, "preset": dataclasses.asdict(preset)})
        return
    if preset is not None:
        print(f"{preset}\n")
    print("\n\n".join(f"{card}\n\n{draw(curve)}" if curve else str(card) for card, curve in shown))


def _shown(loss: Loss | Mixture) -> list[tuple[LossCard, Curve | None]]:
    """Card and curve of a loss, or of each part of a mixture."""
    parts = [part for _, part in loss.parts] if isinstance(loss, Mixture) else [loss]
    return [(card_of(part), curve_of(part)) for part in parts]


def diff_losses(first: tyro.conf.Positional[str], second: tyro.conf.Positional[str], json: bool = False) -> None:
    """Print the axes along which two losses differ, and what both give on the same small data.

    Args:
        first: an id, an alias, a preset, or module:function.
        second: as first.
        json: print it as JSON instead.
    """
    found = compare_losses(first, second)
    if json:
        _print_json(found.as_dict())
    else:
        print(found)


def check_losses(
    names: tyro.conf.Positional[list[str]],
    examples: int | None = None,
    law: tyro.conf.UseAppendAction[list[str]] = [],  # noqa: B006
    loss_config: dict[str, Setting] | None = None,
) -> int:
    """Run the conformance kit on losses; exits with 1 when a check fails.

    Args:
        names: ids, or module:function for a function of yours in a file of the current folder.
        examples: random examples a check; None for the profile's number.
        law: a law of its family to hold it to as well, such as --law on_policy_is_reinforce; with settings as JSON,
            --law 'value_at_reference={"value": 0.6931}'. May be given several times.
        loss_config: settings to check with, such as --loss-config clip_low 0.7.
    """
    require("hypothesis", "testing", "checking a loss")
    from ...losses.testing import CHECKS, check_loss

    if not names:
        raise UnknownLossError("name a loss to check: an id (`lossbook losses list`), or module:function")
    laws = dict(map(_law, law))
    says = {check.name: check.summary for check in CHECKS}
    passed = True
    gc.freeze()  # hypothesis collects garbage; without what the imports left, checking a small loss takes a quarter less
    try:
        for name in names:
            loss = get_loss(name, **(loss_config or {}))
            report = check_loss(loss, on_fail="report", max_examples=examples, laws=laws)
            print(str(report).partition("\n")[0])
            for result in report:
                print(
                    f"{result.status:<8} {result.check}: {says[result.check]}" if result.status == "passed" else result
                )
            passed = passed and report.passed
    finally:
        gc.unfreeze()
    return 0 if passed else 1


def _law(given: str) -> tuple[str, dict[str, Any]]:
    """A law's name and its settings, from NAME or NAME={...}."""
    name, _, settings = given.partition("=")
    try:
        found = json.loads(settings or "{}")
    except ValueError as error:
        raise ConfigError(f"--law {given}: the settings are not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f'--law {given}: settings are a JSON object, such as {{"value": 0.5}}')
    return name, found


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
