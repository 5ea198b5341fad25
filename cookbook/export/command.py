"""The command `lossbook export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from ...datums.errors import ConfigError
from ..run.loggers import quiet_libraries
from ..settings.choices import ExportDtype, ExportForm


def main(
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    format: ExportForm | None = None,
    dtype: ExportDtype = "float32",
    tolerance: float | None = None,
    overwrite: bool = False,
    push_to: str | None = None,
    public: bool = False,
) -> None:
    """Write the trained weights as a folder that peft ("adapter") or transformers ("merged") loads, and check it.

    Args:
        source: a run's folder (its last checkpoint is exported) or a checkpoint.
        out: the folder to write; it must not exist yet.
        format: adapter: the LoRA adapter alone; merged: a whole model. By default the form that was trained.
        dtype: of a merged model's weights.
        tolerance: how much a logprob may differ from the trainer's, nats; by default 0.001 for float32, more for others.
        overwrite: replace `out` if it exists.
        push_to: upload the checked folder to this hub repository, owner/name.
        public: make a new hub repository public; by default it is private.
    """
    from .export import check_repository, export, push

    quiet_libraries()
    if push_to is not None:
        check_repository(push_to)
    if tolerance is not None and not tolerance > 0:
        raise ConfigError(f"--tolerance must be above 0, not {tolerance}")
    checked = export(source, out, format=format, dtype=dtype, tolerance=tolerance, overwrite=overwrite)
    print(f"{out}: {checked}")
    if push_to is not None:
        print(f"pushed to {push(out, push_to, public=public)}")
