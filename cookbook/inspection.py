"""Looking at losses and data from the command line."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from ..datums.chat import TrainOn
from ..datums.errors import UnknownLossError
from ..datums.truncation import Truncation
from ..losses import describe_loss, get_loss, list_losses, plugin_errors
from .configs import Setting
from .extras import require

if TYPE_CHECKING:
    from rich.table import Table


def list_all_losses() -> None:
    """All registered losses, those of plug-ins included; plug-ins that failed to load on stderr."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 1000  # a line a loss, for grep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken plug-ins are printed below
        console.print(_table(list_losses()))
    errors = plugin_errors()
    for name, why in errors.items():
        print(f"plug-in {name!r} failed to load: {why}", file=sys.stderr)


def _table(names: list[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("loss", "per", "couples", "reduction", "formula", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for card in map(describe_loss, names):
        cells = (card.name, card.per, card.couples, card.reduction, card.formula)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def show_loss(name: tyro.conf.Positional[str]) -> None:
    """Print a loss's card.

    Args:
        name: a registered id; `lossbook losses list` lists them.
    """
    print(describe_loss(name))


def check_losses(
    names: tyro.conf.Positional[list[str]], examples: int | None = None, loss_config: dict[str, Setting] | None = None
) -> int:
    """Run the conformance kit on losses; exits with 1 when a check fails.

    Args:
        names: registered ids, or module:function for a function of yours.
        examples: random examples a check; None for the profile's number.
        loss_config: settings to check with, such as --loss-config clip_low 0.7.
    """
    require("hypothesis", "testing", "checking a loss")
    from ..losses.testing import check_loss

    if not names:
        raise UnknownLossError("name a loss to check: an id (`lossbook losses list`), or module:function")
    passed = True
    for name in names:
        report = check_loss(get_loss(name, **(loss_config or {})), on_fail="report", max_examples=examples)
        print(report)
        passed = passed and report.passed
    return 0 if passed else 1


def show_data(
    file: tyro.conf.Positional[Path],
    model: str = "tiny",
    count: int = 3,
    train_on: TrainOn = "all_assistant",
    max_length: int | None = None,
    truncation: Truncation = "error",
) -> None:
    """Print rows of a JSON Lines file as the trainer will see them: learned tokens coloured, or in «» without colour.

    Args:
        file: the data file.
        model: whose tokenizer and chat template to use: hub id, local directory, .gguf file, or 'tiny'.
        count: how many rows.
        train_on: which turns are learned.
        max_length: tokens a sequence may have.
        truncation: what happens to longer sequences.
    """
    from ..datums.view import show_file
    from ..trainer.models import load_model

    options: dict[str, Any] = {"train_on": train_on, "max_length": max_length, "truncation": truncation}
    show_file(file, load_model(model).tokenizer, count, **options)
