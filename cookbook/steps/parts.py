"""The part of a run that this process makes, in provenance.json."""

from __future__ import annotations

import time
from dataclasses import replace

from ..run.names import PROVENANCE
from ..run.provenance import Provenance, provenance_text, read_provenance
from ..run.runs import Run


class RunPart:
    """A part of a run that begins now, after the step of a checkpoint (0 at the start)."""

    def __init__(self, run: Run, about: Provenance, from_step: int) -> None:
        self._run = run
        self._about = replace(about, from_step=from_step)
        self._earlier = read_provenance(run.path) if run.resumed else []
        self._began = time.monotonic()
        self.reached(from_step)

    def reached(self, step: int) -> None:
        """Write a checkpoint's step, and the time until it."""
        seconds = round(time.monotonic() - self._began, 3)
        parts = [*self._earlier, replace(self._about, to_step=step, seconds=seconds)]
        self._run.write(PROVENANCE, provenance_text(parts))
