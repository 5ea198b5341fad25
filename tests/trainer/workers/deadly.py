"""A loss that is cross_entropy, and first has one rank die later: in the model's next forward or backward, an optimizer step,
or a write. Workers import it by name, as they do a user's losses."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_full_backward_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

At = Literal["nothing", "forward", "backward", "optimizer", "save", "now", "stuck", "memory", "mistake"]


def deadly(logprobs: Tensor, *, at: At = "nothing", rank: int = 1) -> Tensor:
    if dist.is_initialized() and dist.get_rank() == rank:
        arm(at)
    return -logprobs


def arm(at: At) -> None:
    if at == "forward":
        seen = iter(range(10**9))
        register_module_forward_pre_hook(lambda *_: die() if next(seen) == 5 else None)
    elif at == "backward":
        register_module_full_backward_hook(lambda *_: die())
    elif at == "optimizer":
        register_optimizer_step_post_hook(lambda *_: die())
    elif at == "save":
        os.environ["LOSSBOOK_FAILPOINT"] = "kill@4"
    elif at == "now":
        die()
    elif at == "stuck":
        time.sleep(10_000)
    elif at == "memory":
        register_module_forward_pre_hook(run_out)
    elif at == "mistake":
        raise ZeroDivisionError("a mistake in a loss")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_out(*_: Any) -> None:
    raise torch.OutOfMemoryError("as a GPU says it")


def deadly_once(logprobs: Tensor) -> Tensor:
    """cross_entropy, which kills rank 1 at its 3rd call with a gradient, unless the file LOSSBOOK_TEST_DEATH says that it did."""
    if torch.is_grad_enabled() and logprobs.requires_grad and dist.get_rank() == 1:
        note = Path(os.environ["LOSSBOOK_TEST_DEATH"])
        CALLS.append(1)
        if len(CALLS) == 3 and not note.exists():
            note.write_text("killed")
            die()
    return -logprobs


CALLS: list[int] = []
