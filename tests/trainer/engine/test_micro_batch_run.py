"""Joining the outputs of micro-batches into a loss's order, and taking its gradients apart again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lossbook as lb
from lossbook.losses import Outputs
from lossbook.trainer.engine.micro_batch_run import Pass
from lossbook.trainer.model.load import LoadedModel


def pass_over(weights: list[list[float]], cuts: list[list[int]], loss: Any = "cross_entropy") -> Pass:
    """A pass whose model is never run: one datum for each list of weights."""
    made = lb.get_loss(loss)
    inputs = [{"target_tokens": list(range(len(w))), "weights": w} for w in weights]
    prepared = made.prepare(
        [lb.Datum(lb.ModelInput.from_ints(range(len(w))), i) for w, i in zip(weights, inputs, strict=True)]
    )
    return Pass(cast(LoadedModel, None), made, prepared, "mean", "padded", prepared.active, cuts)


def outputs_of(run: Pass, cut: list[int]) -> Outputs:
    """Each active position named by a number of its own: its place among all positions."""
    places = torch.from_numpy(run.prepared.positions(cut)).float()
    return Outputs(logprobs=places[run.active[torch.from_numpy(run.prepared.positions(cut))]])


@given(st.data())
def test_what_is_joined_in_any_order_is_taken_apart_as_it_was(draw: Any) -> None:
    weights = draw.draw(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4), min_size=1, max_size=6))
    weights[0][0] = 1.0
    shuffled = draw.draw(st.permutations(range(len(weights))))
    edges = sorted(draw.draw(st.sets(st.integers(1, max(1, len(weights) - 1)), max_size=3)))
    cuts = [shuffled[a:b] for a, b in zip([0, *edges], [*edges, len(shuffled)], strict=True) if a < b]
    order = draw.draw(st.permutations(range(len(weights))))
    run = pass_over(weights, cuts)
    parts = [outputs_of(run, cut) for cut in cuts]
    joined = run.join(cuts, parts, order)
    assert joined.logprobs is not None
    assert torch.equal(joined.logprobs, cast(torch.Tensor, outputs_of(run, order).logprobs))
    for part, gradient in zip(parts, run.parted({"logprobs": joined.logprobs}, cuts, order), strict=True):
        assert torch.equal(gradient["logprobs"], cast(torch.Tensor, part.logprobs))


def calls_while(action: Callable[[], Any]) -> int:
    """How many functions, of Python and of C, are called during `action()`."""
    count = 0

    def tally(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(tally)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("what", ["join", "parted", "plan"])
def test_twice_the_micro_batches_are_no_more_than_twice_the_work(what: str) -> None:
    def calls(count: int) -> int:
        cuts = [[i] for i in reversed(range(count))]
        run = pass_over([[1.0, 0.0, 1.0]] * count, cuts)
        parts = [outputs_of(run, cut) for cut in cuts]
        joined = run.join(cuts, parts, range(count))
        gradients = {"logprobs": cast(torch.Tensor, joined.logprobs)}
        actions: dict[str, Callable[[], Any]] = {
            "join": lambda: run.join(cuts, parts, range(count)),
            "parted": lambda: run.parted(gradients, cuts, range(count)),
            "plan": lambda: run.loss.prepare(run.prepared.datums),
        }
        return calls_while(actions[what])

    assert calls(200) <= 2 * calls(100)
