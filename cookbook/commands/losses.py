"""`lossbook losses ...`: list, show, compare and check losses."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import tyro

from ...datums.errors import ConfigError, UnknownLossError
from ..extras import require
from ..settings.choices import Setting
from ..terminal import Column, console, table

if TYPE_CHECKING:
    from ...losses import LossCard, Preset
    from ...losses.cards.curves import Curve
    from ...losses.loss.loss import LossLike


def list_all_losses(presets: bool = False, json: bool = False) -> None:
    """List all registered losses by family, including those of plug-ins. Plug-ins that failed to load go to stderr.

    Args:
        presets: list the presets instead: losses of other systems as settings of lossbook's losses.
        json: print the cards (or presets) as JSON instead.
    """
    from ...losses import describe_loss, describe_preset, list_losses, list_presets, plugin_errors
    from .cards import print_losses, print_presets

    if presets:
        described = [describe_preset(name) for name in list_presets()]
        if json:
            _print_json([_preset_as_dict(preset) for preset in described])
        else:
            print_presets(described)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken plug-ins are printed below
        cards = [describe_loss(name) for name in list_losses()]
    if json:
        _print_json([card.as_dict() for card in cards])
    else:
        print_losses(cards, len(list_presets()))
    for name, why in plugin_errors().items():
        print(f"plug-in {name!r} failed to load: {why}", file=sys.stderr)


def show_loss(name: tyro.conf.Positional[str], json: bool = False) -> None:
    """Print a loss's card and its curve: the loss and its gradient as functions of its main input.

    Args:
        name: an id or an alias (see `lossbook losses list`), a preset, or module:function.
        json: print the card and the curve's points as JSON instead.
    """
    from ...losses.cards.sample_inputs import usable
    from ...losses.variants.presets import find_preset
    from .cards import print_cards

    described = _cards_and_curves(usable(name))
    preset = find_preset(name)
    if json:
        parts = [{**card.as_dict(), "curve": curve and dataclasses.asdict(curve)} for card, curve in described]
        whole = parts[0] if len(parts) == 1 else {"name": name, "parts": parts}
        _print_json(whole if preset is None else {**whole, "preset": _preset_as_dict(preset)})
        return
    print_cards(described, preset)


def _cards_and_curves(loss: LossLike) -> list[tuple[LossCard, Curve | None]]:
    """The card and the curve of a loss, or of each part of a mixture."""
    from ...losses.cards.card import card_of
    from ...losses.cards.curves import curve_of

    parts = [part for _, part in loss.parts]
    return [(card_of(part), curve_of(part)) for part in parts]


def diff_losses(first: tyro.conf.Positional[str], second: tyro.conf.Positional[str], json: bool = False) -> None:
    """Print how two losses differ: their properties, and their values and gradients on the same small data.

    Args:
        first: the first loss, A: an id or an alias (see `lossbook losses list`), a preset, or module:function.
        second: the loss to compare with it, B: an id, an alias, a preset, or module:function.
        json: print JSON instead.
    """
    from ...losses import compare_losses
    from .cards import print_comparison

    comparison = compare_losses(first, second)
    if json:
        _print_json(comparison.as_dict())
    else:
        print_comparison(comparison)


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
    from ...losses.registry import get_loss
    from ...losses.testing import CHECKS, check_loss

    if not names:
        raise UnknownLossError("name a loss to check: an id (`lossbook losses list`), or module:function")
    laws = dict(map(_parsed_law, law))
    summaries = {check.name: check.summary for check in CHECKS}
    passed, out = True, console()
    with _new_objects_only():
        for name in names:
            loss = get_loss(name, **(loss_config or {}))
            report = check_loss(loss, on_fail="report", max_examples=examples, laws=laws)
            out.print(str(report).partition("\n")[0], style="bold")
            rows = [
                (one.status, one.check, one.message or summaries[one.check]) for one in report if not one.is_failure
            ]
            out.print(table(["", "", Column(text=True)], rows, heads=False))
            for failure in report.failures:
                out.print(str(failure), soft_wrap=True)  # it ends with source code
            passed = passed and report.passed
    return 0 if passed else 1


@contextlib.contextmanager
def _new_objects_only() -> Iterator[None]:
    """Garbage is looked for among what is made within: hypothesis collects it, and a small loss takes a quarter less time."""
    frozen_before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not frozen_before:
            gc.unfreeze()


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


def _preset_as_dict(preset: Preset) -> dict[str, Any]:
    """A preset's fields, and where it was read."""
    return {**dataclasses.asdict(preset), "read_from": preset.read_from}
