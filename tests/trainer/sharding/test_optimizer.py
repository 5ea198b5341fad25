"""AdamW over shards takes the steps of one process, or on every rank none."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import AdamParams
from lossbook.datums.errors import NonFiniteGradientError
from lossbook.trainer.optim.adamw import AdamW
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.shards import is_shard, local, whole

from ..ranks.processes import RankProcesses
from .models import accumulate, built, off, sharded

#: The gradient's norm is above 1 in all models here, so that every step is clipped.
PARAMS = AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=0.05)


def steps(ranks: Ranks, trained: str) -> tuple[list[dict[str, float]], dict[str, Tensor], dict[str, float]]:
    """Three steps: their metrics, the weights after them, and sums over shards that a wrong norm or count would be made of."""
    model = built(trained) if ranks.size == 1 else sharded(ranks, trained)
    optimizer = AdamW(model.trainable(), ranks)
    metrics, naive = [], {}
    for _ in range(3):
        accumulate(model, ranks)
        gradients = [local(p.grad) for p in model.trainable().values() if p.grad is not None]
        naive = {"grad_norm": float(torch.cat([g.reshape(-1) for g in gradients]).norm())}
        metrics.append(optimizer.step(PARAMS))
    naive["parameters_updated"] = float(sum(gradient.numel() for gradient in gradients))
    return metrics, {name: whole(p).clone() for name, p in model.trainable().items()}, naive


@pytest.mark.parametrize("trained", ["tied", "lora with a value head"])
def test_three_clipped_steps_are_those_of_one_process(ranks: RankProcesses, trained: str) -> None:
    expected, weights, _ = steps(ALONE, trained)
    (first, of_first, naive), (second, of_second, _) = ranks.run(steps, trained)
    assert first == second
    assert off(of_first, of_second) == 0.0
    assert off(of_first, weights) < 1e-5  # Adam divides by the square root of small second moments
    for ours, theirs in zip(first, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert expected[0]["grad_norm"] > 0.05
    if trained == "tied":  # the wrong ways are seen to be wrong
        assert abs(naive["grad_norm"] / expected[-1]["grad_norm"] - 1) > 0.05
        assert naive["parameters_updated"] < 0.6 * expected[-1]["parameters_updated"]


def state(model: Any, optimizer: AdamW) -> list[Any]:
    parameters = model.trainable()
    tensors = [*(local(p) for p in parameters.values()), *(local(p.grad) for p in parameters.values())]
    return [*(t.clone() for t in tensors), *optimizer.state_tensors().values(), copy.deepcopy(optimizer.meta())]


def damaged(ranks: Ranks, number: float, clip: float) -> tuple[str, bool, bool]:
    """What a step raises where the last rank alone has such a gradient, whether nothing changed, and whether the next one goes."""
    model = sharded(ranks, "untied")
    optimizer = AdamW(model.trainable(), ranks)
    accumulate(model, ranks)
    optimizer.step(PARAMS)
    accumulate(model, ranks)
    gradient = local(model.trainable()["model.layers.1.mlp.up_proj.weight"].grad)  # type: ignore[arg-type]
    right = gradient[0, 0].clone()
    if ranks.rank == ranks.size - 1:
        gradient[0, 0] = number
    before = state(model, optimizer)
    text = ""
    try:
        optimizer.step(AdamParams(learning_rate=1e-2, grad_clip_norm=clip))
    except NonFiniteGradientError as error:
        text = str(error)
    after = state(model, optimizer)
    unchanged = before[-1] == after[-1] and all(
        torch.equal(a.view(torch.uint8) if a.ndim else a, b.view(torch.uint8) if b.ndim else b)
        for a, b in zip(before[:-1], after[:-1], strict=True)
    )
    gradient[0, 0] = right
    return text, unchanged, bool(optimizer.step(PARAMS)["step"] == 2.0)


@pytest.mark.parametrize(
    ("number", "clip", "words"),
    [(float("nan"), 1.0, "NaN or infinite"), (float("inf"), 0.0, "NaN or infinite"), (3e25, 0.0, "square overflows")],
)
def test_a_gradient_that_is_not_finite_on_one_rank_is_refused_by_all(
    ranks: RankProcesses, number: float, clip: float, words: str
) -> None:
    for text, unchanged, goes_on in ranks.run(damaged, number, clip):
        assert words in text
        assert "model.layers.1.mlp.up_proj.weight" in text
        assert unchanged
        assert goes_on


def bytes_held(ranks: Ranks) -> tuple[int, int]:
    """Bytes of memory that this rank's trained parameters and moments take, padding included."""
    model = built("untied", hidden_size=64) if ranks.size == 1 else sharded(ranks, "untied", hidden_size=64)
    optimizer = AdamW(model.trainable(), ranks)
    accumulate(model, ranks)
    optimizer.step(PARAMS)
    assert all(is_shard(p) for p in model.trainable().values()) or ranks.size == 1
    own = {
        local(p).untyped_storage().data_ptr(): local(p).untyped_storage().nbytes() for p in model.trainable().values()
    }
    moments = [m[key] for m in optimizer._state().values() for key in ("exp_avg", "exp_avg_sq")]
    return sum(own.values()), sum(moment.untyped_storage().nbytes() for moment in moments)


def test_a_rank_holds_its_share_of_parameters_and_moments(ranks: RankProcesses) -> None:
    parameters, moments = bytes_held(ALONE)
    for held, held_moments in ranks.run(bytes_held):
        assert held == pytest.approx(parameters / 2, rel=0.01)
        assert held_moments == pytest.approx(moments / 2, rel=0.01)
