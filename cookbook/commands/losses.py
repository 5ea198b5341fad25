"""`lossbook losses ...`: list, show, compare and check losses."""

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
from ...losses.loss.loss import LossLike
from ...losses.variants.presets import find_preset
from ..extras import require
from ..settings.choices import Setting


def list_all_losses(presets: bool = False, json: bool = False) -> None:
    """List all registered losses by family, including those of plug-ins. Plug-ins that failed to load go to stderr.

    Args:
        presets: list the presets instead: losses of other systems as settings of lossbook's losses.
        json: print the cards (or presets) as JSON instead.
    """
    if presets:
        described = [describe_preset(name) for name in list_presets()]
        if json:
            _print_json([dataclasses.asdict(preset) for preset in described])
        else:
            print("\n".join(_preset_listing(described)))
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
    """One line per loss, in columns, by family. A terminal gets as much of the formula as fits; a pipe gets all of it."""
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
    """One line per preset, by system: the loss and its settings."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    longest = max(len(preset.name) for preset in presets)
    lines: list[str] = []
    for system in dict.fromkeys(preset.name.partition(":")[0] for preset in presets):
        members = [preset for preset in presets if preset.name.startswith(f"{system}:")]
        lines += ["", f"{system} ({len(members)})"]
        lines += [_cut(f"  {preset.name:<{longest}}  {get_loss(preset.name)!r}", width) for preset in members]
    return [
        f"{len(presets)} presets; `lossbook losses show NAME` gives the source of one and what it leaves out",
        *lines,
    ]


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else f"{line[: width - 1]}…"


def show_loss(name: tyro.conf.Positional[str], json: bool = False) -> None:
    """Print a loss's card and its curve: the loss and its gradient as functions of its main input.

    Args:
        name: an id or an alias (see `lossbook losses list`), a preset, or module:function.
        json: print the card and the curve's points as JSON instead.
    """
    described = _cards_and_curves(usable(name))
    preset = find_preset(name)
    if json:
        parts = [{**card.as_dict(), "curve": curve and dataclasses.asdict(curve)} for card, curve in described]
        whole = parts[0] if len(parts) == 1 else {"name": name, "parts": parts}
        _print_json(whole if preset is None else {**whole, "preset": dataclasses.asdict(preset)})
        return
    if preset is not None:
        print(f"{preset}\n")
    print("\n\n".join(f"{card}\n\n{draw(curve)}" if curve else str(card) for card, curve in described))


def _cards_and_curves(loss: LossLike) -> list[tuple[LossCard, Curve | None]]:
    """The card and the curve of a loss, or of each part of a mixture."""
    parts = [part for _, part in loss.parts]
    return [(card_of(part), curve_of(part)) for part in parts]


def diff_losses(first: tyro.conf.Positional[str], second: tyro.conf.Positional[str], json: bool = False) -> None:
    """Print how two losses differ: their properties, and their values and gradients on the same small data.

    Args:
        first: an id, an alias, a preset, or module:function.
        second: the loss to compare with, likewise.
        json: print JSON instead.
    """
    comparison = compare_losses(first, second)
    if json:
        _print_json(comparison.as_dict())
    else:
        print(comparison)


def check_losses(
    names: tyro.conf.Positional[list[str]],
    examples: int | None = None,
    law: tyro.conf.UseAppendAction[list[str]] = [],  # noqa: B006
    loss_config: dict[str, Setting] | None = None,
) -> int:
    """Run the conformance kit on losses. The exit code is 1 if a check fails.

    Args:
        names: ids, or module:function for your own function in a file of the current folder.
        examples: random examples per check; by default the number of the hypothesis profile.
        law: a law of the loss's family to check as well, such as --law on_policy_is_reinforce; with settings as JSON,
            --law 'value_at_reference={"value": 0.6931}'. May be repeated.
        loss_config: settings of the losses, such as --loss-config clip_low 0.7.
    """
    require("hypothesis", "testing", "checking a loss")
    from ...losses.testing import CHECKS, check_loss

    if not names:
        raise UnknownLossError("name a loss to check: an id (`lossbook losses list`), or module:function")
    laws = dict(map(_parsed_law, law))
    summaries = {check.name: check.summary for check in CHECKS}
    passed = True
    gc.freeze()  # hypothesis collects garbage; not scanning imported objects saves a quarter of the time for a small loss
    try:
        for name in names:
            loss = get_loss(name, **(loss_config or {}))
            report = check_loss(loss, on_fail="report", max_examples=examples, laws=laws)
            print(str(report).partition("\n")[0])
            for result in report:
                has_passed = result.status == "passed"
                print(f"{result.status:<8} {result.check}: {summaries[result.check]}" if has_passed else result)
            passed = passed and report.passed
    finally:
        gc.unfreeze()
    return 0 if passed else 1


def _parsed_law(given: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a law, from NAME or NAME={...}."""
    name, _, settings = given.partition("=")
    try:
        values = json.loads(settings or "{}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--law {name}: the settings are not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f'--law {given}: the settings must be a JSON object, such as {{"value": 0.5}}')
    return name, values


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
