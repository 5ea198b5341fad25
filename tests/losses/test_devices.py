"""Losses where the model is: data is packed on the CPU, and everything a loss computes is on its outputs' device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lossbook.datums.errors import ShapeError
from lossbook.losses.cards.examples import example_batch, kind_of

from .as_tensors import AsTensors, as_tensors
from .batches import batch_for
from .cases import shipped, with_needed

REDUCTIONS = ("sum", "token-mean", "seq-mean-token-mean", "seq-mean-token-sum")


def evaluated_on(device: str, loss: Any) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    for count in (4, 6, 2, 3):
        try:
            data, outputs = example_batch(loss, kind_of(loss), count)
            leaves = {
                name: [row.detach().to(device).requires_grad_() for row in rows] for name, rows in outputs.items()
            }
            value, metrics = loss(data, leaves)
        except ShapeError:  # losses over blocks of embeddings want a multiple of two or three
            continue
        assert value.device.type == device
        flat = [leaf for rows in leaves.values() for leaf in rows]
        gradients = torch.autograd.grad(value, flat, allow_unused=True)
        return float(value.detach()), [g.cpu() for g in gradients if g is not None], metrics
    raise AssertionError(f"no example serves {loss.name}")


@pytest.mark.parametrize("name", shipped())
def test_a_loss_gives_the_same_on_a_gpu_under_every_reduction(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    per_token = with_needed(name).spec.per == "token"
    for reduction in REDUCTIONS if per_token else ("",):
        loss = with_needed(name, reduction=reduction) if reduction else with_needed(name)
        (value, gradients, metrics), (other, others, other_metrics) = (
            evaluated_on(device, loss) for device in ("cpu", "cuda")
        )
        assert other == pytest.approx(value, rel=1e-9, abs=1e-12)
        assert other_metrics == pytest.approx(metrics, rel=1e-9, abs=1e-12, nan_ok=True)
        for one, two in zip(gradients, others, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", shipped())
def test_a_loss_on_tensors_gives_the_same_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    loss = with_needed(name)
    batch = batch_for(loss)
    for packed in (False, True):
        tensors = as_tensors(loss, batch.data, batch.outputs, packed=packed)
        (value, gradients, metrics), (other, others, other_metrics) = (
            on_tensors_of(device, loss, tensors) for device in ("cpu", "cuda")
        )
        assert other == pytest.approx(value, rel=1e-9, abs=1e-12)
        assert other_metrics == pytest.approx(metrics, rel=1e-9, abs=1e-12, nan_ok=True)
        for one, two in zip(gradients, others, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)


def on_tensors_of(device: str, loss: Any, tensors: AsTensors) -> tuple[float, list[torch.Tensor], dict[str, float]]:
    leaves = {key: one.detach().to(device).requires_grad_() for key, one in tensors.outputs.items()}
    data = {key: one.to(device) for key, one in tensors.data.items()}
    value, metrics = loss.on_tensors(**leaves, **data, denominator=loss.count_tensors(**leaves, **data))
    assert value.device.type == device
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return float(value.detach()), [g.cpu() for g in gradients if g is not None], dict(metrics)
