"""Outputs of logits that are there already, against the plain formula: values, gradients, and what is held."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lossbook.datums.errors import ModelError
from lossbook.trainer.head import logprobs as head_module
from lossbook.trainer.head.given_logits import logprobs_of_logits

from .test_memory import LiveBytes

POSITIONS, VOCABULARY = 7, 11


def plainly(logits: Tensor, rows: Tensor | None, targets: Tensor, temperature: float) -> list[Tensor]:
    chosen = (logits if rows is None else logits[rows]) / temperature
    everything = chosen.log_softmax(-1)
    columns = targets if targets.ndim == 2 else targets[:, None]
    entropy = -(everything.exp() * everything).sum(-1)
    return [everything.gather(1, columns).view(targets.shape), chosen.logsumexp(-1), entropy, everything.mean(-1)]


def pulled(outputs: list[Tensor]) -> Tensor:
    """A sum in which every number has a factor of its own."""
    return torch.stack([(one * torch.arange(1, 1 + one.numel()).reshape(one.shape)).sum() for one in outputs]).sum()


@given(
    rows=st.none() | st.lists(st.integers(0, POSITIONS - 1), unique=True, max_size=POSITIONS),
    columns=st.sampled_from([None, 1, 3]),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
    tile=st.sampled_from([1, 4 * VOCABULARY * 3, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_log_softmax_and_gather(
    rows: list[int] | None, columns: int | None, temperature: float, tile: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(POSITIONS, VOCABULARY, dtype=torch.float64, generator=generator).requires_grad_()
    chosen = None if rows is None else torch.tensor(rows, dtype=torch.int64)
    count = POSITIONS if rows is None else len(rows)
    targets = torch.randint(VOCABULARY, (count,) if columns is None else (count, columns), generator=generator)
    expected = plainly(logits, chosen, targets, temperature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(head_module.TILE_BYTES, "cpu", tile)
        made = logprobs_of_logits(logits, chosen, targets, entropy=True, mean_logprobs=True, temperature=temperature)
        assert made.entropy is not None
        assert made.mean_logprobs is not None
        outputs = [made.logprobs, made.logsumexp, made.entropy, made.mean_logprobs]
        (slope,) = torch.autograd.grad(pulled(outputs), logits)
    for one, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, torch.autograd.grad(pulled(expected), logits)[0], rtol=0, atol=1e-12)


def test_logits_are_left_as_they_were() -> None:
    logits = torch.randn(3, VOCABULARY, requires_grad=True)
    before = logits.detach().clone()
    logprobs_of_logits(logits, None, torch.tensor([0, 1, 2])).logprobs.sum().backward()
    assert logits.detach().equal(before)


def test_nothing_is_held_beside_narrow_logits_but_their_gradient_and_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(head_module.TILE_BYTES, "cpu", 4096)
    logits = torch.randn(512, 256).bfloat16().requires_grad_()
    targets = torch.randint(256, (512,))
    with LiveBytes(logits, targets) as live:
        logprobs_of_logits(logits, None, targets).logprobs.sum().backward()
    gradient = 2 * logits.numel()  # bfloat16
    assert live.peak < 1.5 * gradient


def test_a_temperature_is_positive() -> None:
    with pytest.raises(ModelError, match="a temperature must be positive, not -1"):
        logprobs_of_logits(torch.zeros(1, 2), None, torch.tensor([0]), temperature=-1)
