"""The check that a saved run goes on exactly as it would have."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...datums.types import AdamParams
from ...losses.registry import get_loss
from ..checkpoint.state import load_training, save_training
from ..model.snapshot import Snapshot
from ..optim.adamw import AdamW
from ..training.model_trainer import Accumulated
from .adapters import adapters
from .under_test import ModelUnderTest, Off, without_gradients

#: All weights are saved and resumed too where there are fewer than this.
FEW = 1 << 24
STEP = AdamParams(learning_rate=1e-3)


def resuming(test: ModelUnderTest) -> Off:
    """Numbers that differ in any bit after a checkpoint, between going on and resuming from it."""
    model, wrong = test.model, []
    weights = sum(p.numel() for p in model.trainable().values())
    ways = "adapters"
    if model.lora is not None or weights < FEW:
        model.before_writing()
        before = Snapshot.take(model)
        try:
            wrong += _differing(test)
        finally:
            for name, parameter in model.trainable().items():
                parameter.data.copy_(before.weights[name])
        ways = "adapters" if model.lora is not None else "all weights"
    if model.lora is None:
        with adapters(test):
            wrong += _differing(test)
        ways = "all weights and adapters" if weights < FEW else "adapters"
    return Off(
        float(len(wrong)),
        0.0,
        "",
        ", ".join(wrong[:3]) or f"bit for bit: weights, moments, gradients, metrics of {ways}",
    )


def _differing(test: ModelUnderTest) -> list[str]:
    model, loss = test.model, get_loss("cross_entropy")
    with without_gradients(model), TemporaryDirectory(prefix="lossbook-check-") as folder:
        optimizer = AdamW(model.trainable())
        test.engine.forward_backward(test.datums, loss)
        optimizer.step(STEP)
        test.engine.forward_backward(test.datums[:2], loss)  # saved with an accumulated gradient
        counts = asdict(Accumulated(calls=1))
        path = save_training(Path(folder), "check", model, optimizer, counts, overwrite=False)
        first = [_state(test, optimizer), _go_on(test, optimizer)]
        again = AdamW(model.trainable())
        load_training(path, model, again)
        second = [_state(test, again), _go_on(test, again)]
    if model.device.type != "cpu":  # the order of sums may change there, so only what was loaded is compared
        first, second = first[:1], second[:1]
    return [
        name
        for one, other in zip(first, second, strict=True)
        for name in one
        if not torch.equal(one[name], other[name])
    ]


def _state(test: ModelUnderTest, optimizer: AdamW) -> dict[str, Tensor]:
    parameters = test.model.trainable()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    return {**weights, **gradients, **optimizer.state_tensors(), "random state": torch.get_rng_state()}


def _go_on(test: ModelUnderTest, optimizer: AdamW) -> dict[str, Tensor]:
    """One more step, and what is then."""
    norm = optimizer.step(STEP)["grad_norm"]
    logprobs = {f"logprobs of datum {i}": each for i, each in enumerate(test.forward())}
    return {**_state(test, optimizer), **logprobs, "grad_norm": torch.tensor(norm, dtype=torch.float64)}
