"""A loss on tensors is that loss on datums: value, gradient, metrics and denominators, padded or packed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.losses.batch.positions import positions_of, width_of
from lossbook.losses.loss.tensors.host import in_one_copy
from lossbook.losses.testing.strategies import datums, outputs

from ..as_tensors import NAN, AsTensors, as_tensors
from ..batches import batch_for
from ..cases import shipped, with_needed

MIXTURES = [
    0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy", reduction="token-mean"),
    0.5 * get_loss("dpo") + 2.0 * get_loss("cross_entropy"),
    get_loss("z_loss") + get_loss("cross_entropy", reduction="token-mean"),
]


def assert_same(loss: Any, data: list[Datum], rows: dict[str, list[Tensor]], *, packed: bool) -> None:
    """Value, gradient, metrics and denominator are those of the datums."""
    own = {
        name: [row.detach().clone().requires_grad_(row.is_floating_point()) for row in one]
        for name, one in rows.items()
    }
    value, metrics = loss(data, own)
    tensors = as_tensors(loss, data, rows, packed=packed)
    same, its_metrics = loss.on_tensors(**tensors.outputs, **tensors.data)
    torch.testing.assert_close(same, value, rtol=0, atol=1e-9)
    slopes = gradient(same, tensors)
    own = {name: one for name, one in own.items() if name in slopes}
    flat = [leaf for one in own.values() for leaf in one]
    expected = iter(torch.autograd.grad(value, flat, allow_unused=True))
    for name, one in own.items():
        for row, leaf in zip(slopes[name], one, strict=True):
            slope = next(expected)
            torch.testing.assert_close(row, torch.zeros_like(leaf) if slope is None else slope, rtol=0, atol=1e-9)
    assert its_metrics.keys() == metrics.keys()
    for name, number in metrics.items():
        assert its_metrics[name] == pytest.approx(number, rel=1e-9, abs=1e-9, nan_ok=True), name
    counted = loss.count_tensors(**{**tensors.outputs, **tensors.data})
    assert counted.reshape(-1).tolist() == [share or 0.0 for share in loss.count(data).values]


def gradient(value: Tensor, tensors: AsTensors) -> dict[str, list[Tensor]]:
    """By output, one tensor per datum."""
    leaves = {name: leaf for name, leaf in tensors.outputs.items() if leaf.is_floating_point()}
    slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        name: tensors.rows(name, torch.zeros_like(leaf) if slope is None else slope)
        for slope, (name, leaf) in zip(slopes, leaves.items(), strict=True)
    }


@pytest.mark.parametrize(
    "packed", [pytest.param(False, id="padded", marks=pytest.mark.slow), pytest.param(True, id="packed")]
)
@pytest.mark.parametrize("loss", [*map(with_needed, shipped()), *MIXTURES], ids=lambda loss: loss.name)
def test_each_loss_on_tensors_is_that_loss_on_datums(loss: Any, packed: bool) -> None:
    batch = batch_for(loss)
    assert_same(loss, batch.data, batch.outputs, packed=packed)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [*map(with_needed, shipped()), *MIXTURES], ids=lambda loss: loss.name)
def test_each_loss_on_tensors_of_any_shape_and_mask_is_that_loss_on_datums(loss: Any) -> None:
    @settings(max_examples=15)
    @given(st.data(), st.booleans())
    def holds(drawn: Any, packed: bool) -> None:
        data = drawn.draw(datums(loss))
        # packed [1, K] is K positions in one row, unless a mask [1] says that it is K targets of one position
        is_unclear = sum(map(positions_of, data)) == 1 and width_of(data) is not None
        assert_same(loss, data, drawn.draw(outputs(loss, data)), packed=packed and not is_unclear)

    holds()


def test_a_number_per_row_holds_for_all_of_its_positions() -> None:
    loss = get_loss("ppo", reduction="token-mean")
    logprobs, sampled = -torch.rand(2, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    own = torch.tensor([1.0, -2.0, 0.5])
    wide, _ = loss.on_tensors(
        logprobs=logprobs, mask=mask, sampling_logprobs=sampled, advantages=own[:, None].expand(3, 4)
    )
    for given_as in (own, own[:, None], own.tolist()):
        narrow, _ = loss.on_tensors(logprobs=logprobs, mask=mask, sampling_logprobs=sampled, advantages=given_as)
        assert narrow.item() == wide.item()


def test_packed_tensors_may_lie_in_one_row() -> None:
    loss = get_loss("gspo")
    logprobs, sampled, advantages = -torch.rand(3, 7, dtype=torch.float64)
    mask, ends = torch.tensor([1, 1, 0, 1, 1, 1, 1]), [0, 3, 7]
    flat = {"logprobs": logprobs, "mask": mask, "sampling_logprobs": sampled, "advantages": advantages}
    in_one_row = {name: tensor[None] for name, tensor in flat.items()}
    assert loss.on_tensors(**flat, cu_seqlens=ends) == loss.on_tensors(**in_one_row, cu_seqlens=ends)


def test_packed_tensors_of_a_loss_that_couples_no_positions_need_no_boundaries() -> None:
    value, _ = get_loss("cross_entropy", reduction="token-mean").on_tensors(
        logprobs=torch.tensor([-1.0, -2.0, math.nan]), mask=torch.tensor([True, True, False])
    )
    assert value.item() == 1.5


def mean_nll(data: Any, logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
    """As the hosted APIs' custom losses are written."""
    total = torch.zeros(())
    for one, logprobs in zip(data, logprobs_list, strict=True):
        total = (
            total
            - (one.loss_fn_inputs["weights"].to_torch() * one.loss_fn_inputs["advantages"].to_torch() * logprobs).sum()
        )
    return total / len(data), {"rows": float(len(data))}


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_function_with_the_hosted_signature_gets_a_datum_per_row(packed: bool) -> None:
    batch = batch_for(get_loss("reinforce"))
    tensors = as_tensors(get_loss("reinforce"), batch.data, batch.outputs, packed=packed)
    loss = get_loss(mean_nll)
    expected, _ = loss(batch.data, batch.outputs["logprobs"])
    value, metrics = loss.on_tensors(**tensors.outputs, **tensors.data)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert dict(metrics) == {"rows": 12.0}
    assert torch.isfinite(gradient(value, tensors)["logprobs"][0]).all()
    assert loss.count_tensors(**tensors.data).item() == 0


def test_the_datums_of_such_a_function_carry_what_was_given() -> None:
    seen: list[Any] = []

    def look(data: Any, logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
        seen.extend(data)
        return sum(logprobs.sum() for logprobs in logprobs_list), {}

    get_loss(look).on_tensors(
        torch.zeros(2, 2, requires_grad=True),
        mask=torch.tensor([[1, 0], [1, 1]]),
        input_ids=torch.tensor([[5, 6], [7, 8]]),
        target_tokens=torch.tensor([[6, 0], [8, 9]]),
        sampling_logprobs=torch.tensor([[-1.0, NAN], [-2.0, -3.0]]),
        advantages=torch.tensor([1.0, 2.0]),
    )
    first, second = seen
    assert second.model_input.to_ints() == [7, 8]
    assert {key: value.tolist() for key, value in second.loss_fn_inputs.items()} == {
        "weights": [1.0, 1.0],
        "target_tokens": [8, 9],
        "sampling_logprobs": [-2.0, -3.0],
        "logprobs": [-2.0, -3.0],
        "advantages": 2.0,
    }
    assert first.loss_fn_inputs["sampling_logprobs"].tolist() == [-1.0, 0.0]  # NaN where nothing counts


CORRECTED = [
    *map(get_loss, ["trl:grpo", "tinker:ppo", "verl:gspo", "ppo+token_truncate"]),
    get_loss("ppo+off_policy_mask", threshold=0.5, reduction="token-mean"),
]


@pytest.mark.parametrize("loss", CORRECTED, ids=lambda loss: loss.name)
def test_presets_and_corrections_take_tensors(loss: Any) -> None:
    batch = batch_for(loss)
    assert_same(loss, batch.data, batch.outputs, packed=True)


def test_a_loss_of_ones_own_that_reads_weights_sees_every_position() -> None:
    def weighed(logprobs: Tensor, weights: Tensor, bonus: Tensor) -> Tensor:
        assert len(logprobs) == 6
        return -weights * (logprobs + bonus)

    values = torch.tensor([[-1.0, NAN, -2.0], [-3.0, -4.0, NAN]], requires_grad=True)
    mask = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 0.0]])
    value, _ = get_loss(weighed).on_tensors(values, mask=mask, bonus=torch.where(mask == 0, NAN, 1.0))
    value.backward()
    assert value.item() == 0 + 2 * 1 + 0.5 * 2
    assert values.grad is not None
    assert values.grad.tolist() == [[-1.0, 0.0, -2.0], [-0.5, 0.0, 0.0]]


def test_metrics_are_a_mapping_of_floats_that_adds_up() -> None:
    one = get_loss("cross_entropy").on_tensors([-1.0, -2.0])[1]
    other = get_loss("cross_entropy").on_tensors([-6.0])[1]
    assert one == {"nll": 1.5}
    assert sum([one, other]) == {"nll": 3.0}
    assert repr(one + other) == "{'nll': 3.0}"


@given(st.lists(st.sampled_from([torch.bool, torch.int32, torch.int64, torch.bfloat16, torch.float64]), min_size=1))
def test_tensors_of_any_dtype_and_shape_come_to_the_host_in_one_copy(dtypes: list[torch.dtype]) -> None:
    shapes = [(), (3,), (0,), (2, 5)]
    given_tensors = {
        str(i): torch.arange(math.prod(shapes[i % 4])).reshape(shapes[i % 4]).to(dtype)
        for i, dtype in enumerate(dtypes)
    }
    for name, tensor in in_one_copy(given_tensors).items():
        assert tensor.dtype == given_tensors[name].dtype
        assert tensor.equal(given_tensors[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_scripts_default_dtype_and_device_change_nothing(dtype: torch.dtype) -> None:
    loss = get_loss("ppo", reduction="token-mean")
    logprobs, mask = torch.tensor([[-0.3, -0.7]]), torch.tensor([[1, 1]])

    def computed() -> tuple[Any, ...]:
        value, metrics = loss.on_tensors(
            logprobs, mask=mask, sampling_logprobs=[[-0.1, -0.9]], advantages=[0.3], denominator=3
        )
        return value.item(), dict(metrics), loss.count_tensors(mask=mask).item()

    expected, before = computed(), torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        torch.set_default_device("meta")
        assert computed() == expected
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
