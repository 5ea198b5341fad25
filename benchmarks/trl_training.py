"""TRL's trainers, one optimizer step at a time, so that their steps can alternate with others in one process."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
import workloads
from steps import ADAM, CLIP

#: Settings that make a trainer's step the same as all others; they do not change its speed.
SAME_STEP = {
    "learning_rate": ADAM["lr"],
    "adam_beta1": ADAM["betas"][0],
    "adam_beta2": ADAM["betas"][1],
    "adam_epsilon": ADAM["eps"],
    "weight_decay": ADAM["weight_decay"],
    "max_grad_norm": CLIP,
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "max_steps": 1_000_000,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}
#: Settings that make a trainer fast at equal precision: the dtype of the loaded model throughout, nothing computed twice, the
#: fused optimizer, no logs.
TUNED = {
    "bf16": False,
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
    "logging_strategy": "no",
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
}


def tuned(options: argparse.Namespace) -> dict[str, Any]:
    """TUNED, in autocast where all ways are."""
    return {**TUNED, "bf16": options.autocast}


def trl_module(folder: str, options: argparse.Namespace) -> Any:
    """The model that a trainer gets; where products are in another dtype than weights, the trainer sees to it."""
    return workloads.load_module(folder, options.device, torch.float32 if options.autocast else options.dtype)


class _Closed(Exception):
    """No further step is wanted."""


class PausedTraining:
    """A trainer's own `train()` in a separate thread that makes one optimizer step per call.

    A call returns the step's loss. It covers everything that the trainer does between two steps: fetching and collating data,
    sampling if the method samples, forward, backward, clipping, the optimizer. All of this happens inside the context
    `around`, in the trainer's own thread.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer: Any = trainer
        self.around: AbstractContextManager[Any] = nullcontext()
        self._is_inside = False
        self._may_go, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._closing = False
        self._error: BaseException | None = None
        self._losses: list[torch.Tensor] = []
        self._threads = torch.get_num_threads()
        self._record_losses()
        trainer.add_callback(self._callback())
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()
        self._has_stopped.acquire()

    def __call__(self) -> float:
        self._losses.clear()
        self._may_go.release()
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error
        return float(sum(loss.item() for loss in self._losses))

    def close(self) -> None:
        """End the training and release the trainer."""
        self._closing = True
        self._may_go.release()
        self._thread.join()
        del self.trainer

    def _train(self) -> None:
        torch.set_num_threads(self._threads)
        try:
            self.trainer.train()
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._has_stopped.release()

    def _pause(self) -> None:
        if self._is_inside:
            self.around.__exit__(None, None, None)
        self._has_stopped.release()
        self._may_go.acquire()
        if self._closing:
            raise _Closed
        self.around.__enter__()
        self._is_inside = True

    def _record_losses(self) -> None:
        step = self.trainer.training_step

        def recorded(*arguments: Any, **options: Any) -> torch.Tensor:
            loss = step(*arguments, **options)
            self._losses.append(loss.detach())
            return loss

        self.trainer.training_step = recorded

    def _callback(self) -> transformers.TrainerCallback:
        outer = self

        class Pause(transformers.TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                outer._pause()

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                outer._pause()

        return Pause()


def repeated(rows: Sequence[dict[str, Any]], steps: int) -> Any:
    """A dataset that repeats `rows`, so that each step sees the same batch in the same order."""
    import datasets

    return datasets.Dataset.from_list(list(rows) * steps)
