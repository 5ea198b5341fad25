"""Looking at data from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from ..datums.chat import TrainOn
from ..datums.truncation import Truncation


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
