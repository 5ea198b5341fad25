"""Parts of a batch of tensors, with the whole's denominator, add up to the whole: micro-batches and ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, distributed

from lossbook import get_loss
from lossbook.losses.batch.positions import width_of
from lossbook.losses.testing.strategies import as_loss_under_test, datums, outputs

from ..as_tensors import AsTensors, as_tensors
from ..batches import batch_for
from ..cases import shipped, with_needed

Rows = list[int]


def cuts(loss: Any, data: list[Any], drawn: Any) -> list[Rows]:
    """Rows in parts that separate nothing the loss couples; some may be empty."""
    count = len(data)
    if loss.couples == "batch":
        return [list(range(count))]
    if loss.couples == "group":
        ids = [int(datum.loss_fn_inputs["group"].to_numpy()) for datum in data]
        between = [at for at in range(count + 1) if not {*ids[:at]} & {*ids[at:]}]
        edges = sorted(drawn(st.lists(st.sampled_from(between), max_size=3)))
        return [list(range(a, b)) for a, b in zip([0, *edges], [*edges, count], strict=True)]
    step = 2 if loss.couples == "pair" or any(part.spec.per == "pair" for _, part in loss.parts) else 1
    edges = sorted(drawn(st.lists(st.integers(0, count // step), max_size=3)))
    spans = zip([0, *edges], [*edges, count // step], strict=True)
    return [list(range(a * step, b * step)) for a, b in spans]


def part_of(loss: Any, tensors: AsTensors, rows: Rows) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Some neighbouring rows, or packed sequences."""
    start, stop = (rows[0], rows[-1] + 1) if rows else (0, 0)
    whole = {**tensors.outputs, **tensors.data}
    places, of_rows = slice(start, stop), slice(start, stop)
    if (ends := whole.pop("cu_seqlens", None)) is not None:
        places = slice(int(ends[start]), int(ends[stop]))
    inputs = [one for _, part in loss.parts for one in part.spec.inputs]
    per_row = {"embeddings", *(one.name for one in inputs if one.per == "datum")}
    part = {name: one[of_rows if name in per_row else places] for name, one in whole.items()}
    if ends is not None:
        part["cu_seqlens"] = ends[start : stop + 1] - ends[start]
    return {n: one for n, one in part.items() if n in tensors.outputs}, {
        n: one for n, one in part.items() if n not in tensors.outputs
    }


def assert_parts_add_up(loss: Any, tensors: AsTensors, parts: list[Rows]) -> None:
    whole, metrics = loss.on_tensors(**tensors.outputs, **tensors.data)
    leaves = list(tensors.outputs.values())
    slopes = torch.autograd.grad(whole, leaves, allow_unused=True)
    pieces = [part_of(loss, tensors, rows) for rows in parts]
    denominator: Any = sum(loss.count_tensors(**own, **data) for own, data in pieces)
    results = [loss.on_tensors(**own, **data, denominator=denominator) for own, data in pieces]
    total = torch.stack([value for value, _ in results]).sum()
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-9)
    for own, expected in zip(torch.autograd.grad(total, leaves, allow_unused=True), slopes, strict=True):
        zero = torch.zeros(())
        torch.testing.assert_close(
            zero if own is None else own, zero if expected is None else expected, rtol=0, atol=1e-9
        )
    merged = sum(own for _, own in results)
    for name, number in metrics.items():
        assert merged[name] == pytest.approx(number, rel=1e-9, abs=1e-9, nan_ok=True), name  # type: ignore[index]


MIXTURE = 0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy", reduction="token-mean")
KINDS = ["cross_entropy", "ppo", "grpo", "gspo", "dr_grpo", "dpo", "kto", "topk_forward_kl", "info_nce", "reward_bt"]


@pytest.mark.parametrize(
    "packed", [pytest.param(False, id="padded"), pytest.param(True, id="packed", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("loss", [*map(with_needed, KINDS), MIXTURE], ids=lambda loss: loss.name)
def test_micro_batches_add_up_to_the_whole(loss: Any, packed: bool) -> None:
    batch = batch_for(loss)
    tensors = as_tensors(loss, batch.data, batch.outputs, packed=packed)
    parts = [list(range(12))] if loss.couples == "batch" else [[0, 1], [2, 3, 4, 5], [], list(range(6, 12))]
    assert_parts_add_up(loss, tensors, parts)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*map(with_needed, shipped()), MIXTURE], ids=lambda loss: loss.name)
def test_any_micro_batches_add_up_to_the_whole(loss: Any) -> None:
    under_test = as_loss_under_test(loss)

    @settings(max_examples=6)
    @given(st.data(), st.booleans())
    def holds(drawn: Any, packed: bool) -> None:
        data = drawn.draw(datums(under_test))
        # packed [1, K] is K positions in one row, also in a part
        packed = packed and width_of(data) is None
        tensors = as_tensors(loss, data, drawn.draw(outputs(under_test, data)), packed=packed)
        assert_parts_add_up(loss, tensors, cuts(loss, data, drawn.draw))

    holds()


def test_a_micro_batch_without_a_token_adds_nothing_and_has_a_graph() -> None:
    loss = get_loss("gspo")
    logprobs = torch.zeros(2, 3, requires_grad=True)
    value, metrics = loss.on_tensors(
        logprobs=logprobs,
        mask=torch.zeros(2, 3),
        sampling_logprobs=torch.zeros(2, 3),
        advantages=torch.ones(2),
        denominator=5,
    )
    value.backward()
    assert value.item() == 0
    assert logprobs.grad is not None
    assert not logprobs.grad.any()
    assert set(metrics) == {"nll", *metrics}


def test_a_denominator_may_be_a_number_a_tensor_or_a_count() -> None:
    loss = get_loss("cross_entropy", reduction="token-mean")
    batch = batch_for(loss)
    tensors = as_tensors(loss, batch.data, batch.outputs, packed=True)
    count = loss.count(batch.data)
    given_as = [
        count,
        float(count),
        np.int64(float(count)),
        torch.tensor(float(count)),
        torch.tensor([int(float(count))]),
    ]
    values = [loss.on_tensors(**tensors.outputs, **tensors.data, denominator=one)[0] for one in given_as]
    assert {value.item() for value in values} == {loss.on_tensors(**tensors.outputs, **tensors.data)[0].item()}


def test_metrics_over_the_ranks_of_a_group_are_their_sum(tmp_path: Any) -> None:
    loss = get_loss("ppo+token_truncate")
    batch = batch_for(loss)
    tensors = as_tensors(loss, batch.data, batch.outputs, packed=False)
    _, metrics = loss.on_tensors(**tensors.outputs, **tensors.data)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        assert dict(metrics.all_reduce()) == dict(metrics)
    finally:
        distributed.destroy_process_group()
