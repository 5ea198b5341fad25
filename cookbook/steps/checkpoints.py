"""Which of a run's checkpoints stay."""

from __future__ import annotations

import re
import warnings

from ...datums import disk
from ...trainer.checkpoint.places import remove_checkpoint
from ..run.names import KEPT
from ..run.runs import Run


def keep_newest(run: Run, count: int, best: int | None) -> None:
    """Delete checkpoints but the newest `count`, which includes the one that a resumed run continues from, and the best.

    Call it after a save. Where one cannot be deleted there is a warning, and training goes on.
    """
    matches = [re.fullmatch(r"step-(\d+)", path.name) for path in run.checkpoints.iterdir()]
    steps = sorted(int(match[1]) for match in matches if match is not None)
    for step in steps[:-count]:
        if step == best:
            continue
        try:
            remove_checkpoint(run.checkpoint(step))
        except OSError as error:
            warnings.warn(f"{run.checkpoint(step)} could not be deleted: {error}", RuntimeWarning, stacklevel=2)
        else:
            disk.remove(run.path / KEPT / f"{run.checkpoint_name(step)}.json")
