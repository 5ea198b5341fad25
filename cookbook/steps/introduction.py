"""The first lines of a run: what is trained on what, how the model runs, and where its adapters are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..redaction import redacted
from ..run.configs import adam_params
from ..run.provenance import Provenance, provenance
from ..terminal import plain_text, show

if TYPE_CHECKING:
    from ...trainer import TrainingClient
    from ...trainer.responses import ModelInfo
    from ..run.runs import Run
    from ..settings.base import RecipeConfig


def introduce(config: RecipeConfig, run: Run, training: TrainingClient, *, rows: int, steps: int) -> None:
    """Print the first lines of a run, and let the run know where its numbers come from. rows: rows or problems to train on."""
    adam_params(config, 1, steps)  # raises where the schedule does not fit the number of steps
    info = training.get_info()
    hardware = (
        None if config.workers is None else f"{config.workers} workers on {info.device}"
    )  # theirs, not this process's
    run.about = provenance(info, rows=rows, steps=steps, device=hardware)
    say(first_line(config, info, run.about))
    say(f"{config.model} {training.how_it_runs().result()}")
    if not config.all_weights:
        say(adapters_line(training.get_info()))


def first_line(config: RecipeConfig, info: ModelInfo, about: Provenance) -> str:
    """Model, parameters trained of all, device, dtype, rows, steps and loss, in one line."""
    all_of_them = "" if about.parameters is None else f" of {about.parameters:,}"
    weights = " over 4-bit weights" if info.base_weights == "4bit" else ""
    return (
        f"{config.model}: {about.parameters_trained:,}{all_of_them} parameters trained on {about.device} in {about.dtype}"
        f"{weights}; {about.rows:,} rows, {about.steps:,} steps, loss {config.loss}"
    )


def adapters_line(info: ModelInfo) -> str:
    """What has a LoRA adapter, and what was left out and why, layer numbers as *."""
    line = f"LoRA of rank {info.lora_rank} on {', '.join(info.lora_targets)}"
    if not info.lora_left_out:
        return line
    return f"{line}; none on {', '.join(f'{name} ({reason})' for name, reason in info.lora_left_out.items())}"


def say(text: str) -> None:
    """Print text without secrets: in a terminal wrapped between words, in a pipe as it is."""
    show(plain_text(redacted(text)))
