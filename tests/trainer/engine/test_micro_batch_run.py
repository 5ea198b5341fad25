"""Joining the outputs of micro-batches into a loss's order, and splitting its gradients again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lossbook as lb
from lossbook.losses import Outputs
from lossbook.trainer.engine.micro_batch_run import MicroBatches
from lossbook.trainer.engine.run.rows import OutputRows
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.model import LoadedModel


def datums_with(weights: Sequence[list[float]]) -> list[lb.Datum]:
    """One datum for each list of weights."""
    inputs = [{"target_tokens": list(range(len(w))), "weights": w} for w in weights]
    return [lb.Datum(lb.ModelInput.from_ints(range(len(w))), i) for w, i in zip(weights, inputs, strict=True)]


def batches_of(weights: Sequence[list[float]], cuts: list[list[int]]) -> MicroBatches:
    """Micro-batches whose model is never run."""
    sequences = [np.arange(len(w)) for w in weights]
    rows = OutputRows(["logprobs"], [np.array(w) != 0 for w in weights])
    settings = EngineSettings(batching="padded")
    return MicroBatches(cast(LoadedModel, None), datums_with(weights), "mean", settings, sequences, rows, [cuts])


def outputs_of(batches: MicroBatches, cut: Sequence[int]) -> Outputs:
    """Each active position has its own number: its index among the positions of all datums."""
    positions = np.split(
        np.arange(sum(map(len, batches.rows.active))), np.cumsum([len(mask) for mask in batches.rows.active])[:-1]
    )
    own = np.concatenate([positions[i][batches.rows.active[i]] for i in cut])
    return Outputs(logprobs=torch.from_numpy(own).float())


@given(st.data())
def test_outputs_joined_in_any_order_are_split_as_they_were(draw: Any) -> None:
    weights = draw.draw(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=4), min_size=1, max_size=6))
    weights[0][0] = 1.0
    shuffled = draw.draw(st.permutations(range(len(weights))))
    edges = sorted(draw.draw(st.sets(st.integers(1, max(1, len(weights) - 1)), max_size=3)))
    cuts = [shuffled[a:b] for a, b in zip([0, *edges], [*edges, len(shuffled)], strict=True) if a < b]
    order = draw.draw(st.permutations(range(len(weights))))
    batches = batches_of(weights, cuts)
    parts = [outputs_of(batches, cut) for cut in cuts]
    places = batches.rows.places(cuts, order)
    joined = batches.rows.join(parts, order, places)
    assert joined.logprobs is not None
    assert torch.equal(joined.logprobs, cast(torch.Tensor, outputs_of(batches, order).logprobs))
    split = batches.rows.split_gradients({"logprobs": joined.logprobs}, cuts, places)
    for part, gradient in zip(parts, split, strict=True):
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


@pytest.mark.parametrize("what", ["join", "split_gradients", "bind"])
def test_twice_the_micro_batches_are_no_more_than_twice_the_work(what: str) -> None:
    def calls(count: int) -> int:
        cuts = [[i] for i in reversed(range(count))]
        batches = batches_of([[1.0, 0.0, 1.0]] * count, cuts)
        parts = [outputs_of(batches, cut) for cut in cuts]
        places = batches.rows.places(cuts, range(count))
        joined = batches.rows.join(parts, range(count), places)
        gradients = {"logprobs": cast(torch.Tensor, joined.logprobs)}
        actions: dict[str, Callable[[], Any]] = {
            "join": lambda: batches.rows.join(parts, range(count), batches.rows.places(cuts, range(count))),
            "split_gradients": lambda: batches.rows.split_gradients(gradients, cuts, places),
            "bind": lambda: lb.get_loss("cross_entropy").prepare(batches.datums),
        }
        actions[what]()  # what is made once per process is made now
        return calls_while(actions[what])

    assert calls(200) <= 2 * calls(100)
