"""A step of decoding recorded once per shape of its buffers, and replayed: one launch for all of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ...model.model import LoadedModel
from ...model.verdict import Verdict

if TYPE_CHECKING:  # it imports transformers
    from .state import State

#: Runs a step while recording what it does to tensors, and returns a function that does the same to the same tensors again.
#: Whatever a recording cannot hold, such as a number read from the device, is an error of any class.
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
#: The name of the verdict that says whether the model's steps can be recorded.
VERDICT = "graph"
#: With fewer steps to come in a state, recording takes longer than it saves.
WORTHWHILE_STEPS = 8


def record_cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph. Nothing is computed before the first replay."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # torch.cuda.graph would leave its stream behind after a capture that fails
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            step()
        finally:
            graph.capture_end()
    return graph.replay


#: Recorders by type of device; where there is none, every step runs by itself.
RECORDERS: dict[str, Recorder] = {"cuda": record_cuda_graph}


class Graphs:
    """Runs steps: replayed where they can be recorded. One failure is kept as a verdict, and no more are tried for the model."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.record = RECORDERS.get(model.device.type)

    def run(self, state: State, step: Callable[[], None], steps_left: int) -> None:
        """Take one step of a state, of which `steps_left` are to come in this block.

        The first step of a state runs by itself: it allocates, and asks for the masks that later ones read.
        """
        if state.replay is None and state.masks and steps_left >= WORTHWHILE_STEPS and self._may_record():
            self._record(state, step)
        if state.replay is None:
            step()
            return
        state.follow(state.replay)

    def _may_record(self) -> bool:
        return self.record is not None and bool(self.model.verdicts.get(VERDICT, True))

    def _record(self, state: State, step: Callable[[], None]) -> None:
        assert self.record is not None
        state.recording = True
        try:
            state.replay = self.record(step)
            self.model.verdicts[VERDICT] = Verdict(True)
        except Exception as error:  # of CUDA, of torch, or of a model that reads from the device
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.model.verdicts[VERDICT] = Verdict(False, f"a step cannot be recorded, {reason}")
        finally:
            state.recording = False
