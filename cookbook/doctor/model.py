"""`lossbook doctor model PATH`: whether lossbook runs a model rightly, and how it runs it."""

from __future__ import annotations

from typing import Annotated

import tyro

from ..run.loggers import quiet_libraries
from ..terminal import show


def main(path: Annotated[str, tyro.conf.Positional], device: str | None = None) -> int:
    """Check logprobs, gradients and samples of a model against its own logits. The exit code is 1 when a check fails.

    Args:
        path: hub id, local directory, .gguf file, or 'tiny'.
        device: cpu, cuda, ...; by default the best available.
    """
    from ...trainer.conformance import check_model

    quiet_libraries()
    report = check_model(path, device=device)
    show(str(report))
    return 0 if report.ok else 1
