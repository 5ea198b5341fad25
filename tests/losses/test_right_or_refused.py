"""Every registered loss over booleans, integers, half precision, [N, K], [N, 1], nothing, one datum, thousands: right or refused.

What is right is said in float64, over the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum, describe_preset, get_loss, list_presets
from lossbook.datums.errors import EmptyLossError, ShapeError
from lossbook.losses import Loss, adaptive_layer, matryoshka
from lossbook.losses.spec.layers import DATUM_OUTPUTS

from .batches import Batch, batch_for
from .cases import shipped, with_needed

LOSSES = {
    **{name: with_needed(name) for name in shipped()},
    **{name: get_loss(name) for name in ("ppo+token_truncate", "ppo+sequence_band", "gspo+geometric_mask")},
    "grpo+off_policy_mask": get_loss("grpo+off_policy_mask", threshold=0.1),
    "adaptive_layer": adaptive_layer("info_nce", layers=(0, 3)),
    "matryoshka": matryoshka("info_nce", dims=(8, 4)),
    "mixture": 0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy", reduction="token-mean"),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def result(loss: Any, data: Sequence[Datum], outputs: Mapping[str, Sequence[Tensor]]) -> tuple[float, dict[str, list]]:
    """The loss and its gradients, computed in the outputs' own type; integers have no gradient."""
    own = {name: [row.clone() for row in rows] for name, rows in outputs.items()}
    leaves = [row.requires_grad_() for rows in own.values() for row in rows if row.is_floating_point()]
    value, _ = loss(data, own)
    if leaves:
        value.backward()
    gradients = {
        name: [row.grad.double() if row.grad is not None else None for row in rows] for name, rows in own.items()
    }
    return float(value.detach()), gradients


def changed(batch: Batch, change: Any) -> list[Datum]:
    """The batch's datums with every input but the targets changed."""
    return [
        Datum(
            one.model_input,
            {
                key: value if key == "target_tokens" else change(key, value.to_torch())
                for key, value in one.loss_fn_inputs.items()
            },
        )
        for one in batch.data
    ]


def assert_close(given: Any, wanted: Any, tolerance: float) -> None:
    (value, gradients), (right, slopes) = given, wanted
    assert value == pytest.approx(right, rel=tolerance, abs=tolerance)
    for name, rows in gradients.items():
        for row, slope in zip(rows, slopes[name], strict=True):
            if row is not None and slope is not None:
                torch.testing.assert_close(row, slope, rtol=tolerance, atol=tolerance)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_outputs_of_any_number_type_give_the_loss_of_the_same_numbers(name: str, dtype: torch.dtype) -> None:
    loss, batch = LOSSES[name], batch_for(LOSSES[name])
    outputs = {
        key: [row if dtype.is_floating_point else row.round() for row in rows] for key, rows in batch.outputs.items()
    }
    given = result(loss, batch.data, {key: [row.to(dtype) for row in rows] for key, rows in outputs.items()})
    half = dtype in (torch.float16, torch.bfloat16)  # their gradients are rounded to their own type
    assert_close(given, result(loss, batch.data, outputs), 1e-2 if half else 1e-4)
    if half:
        assert given[0] == pytest.approx(result(loss, batch.data, outputs)[0], rel=1e-4, abs=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_inputs_that_are_integers_or_booleans_count_as_numbers(name: str, dtype: torch.dtype) -> None:
    loss, batch = LOSSES[name], batch_for(LOSSES[name])

    def whole(key: str, values: Tensor) -> Tensor:
        return values.round() if dtype == torch.int64 else (values > 0).float()

    rounded, typed = changed(batch, whole), changed(batch, lambda key, values: whole(key, values).to(dtype))
    assert_close(result(loss, typed, batch.outputs), result(loss, rounded, batch.outputs), 1e-6)


@every_loss
@pytest.mark.parametrize("columns", [1, 2])
def test_several_targets_per_position_are_as_many_losses_or_refused(name: str, columns: int) -> None:
    loss, batch = LOSSES[name], batch_for(LOSSES[name], columns=columns)
    if any(part.spec.candidates for _, part in loss.parts) or "embeddings" in loss.outputs:
        return  # K candidates are what these compare, and embeddings have no positions
    specs = [part.spec for _, part in loss.parts]
    if any(one.per != "token" or one.couples == "batch" or one.reads_vocabulary or one.reads_top for one in specs):
        with pytest.raises(
            ShapeError, match=r"reads one token per position, but target_tokens of datum 0 of 12 is \[N, K\]"
        ):
            loss(batch.data, batch.outputs)
        return
    if "sum" not in {part.reduction for _, part in loss.parts}:
        loss = with_needed(name, reduction="sum") if name in shipped() else loss
    if any(part.spec.couples != "token" for _, part in loss.parts):  # vespo, gspo_token
        with pytest.raises(ShapeError, match="reads one token per position"):
            loss(batch.data, batch.outputs)
        return
    given = result(loss, batch.data, batch.outputs)
    flat = changed(batch, lambda key, values: values.reshape(-1))
    flat = [
        Datum(
            one.loss_fn_inputs["target_tokens"].data,
            {**one.loss_fn_inputs, "target_tokens": one.loss_fn_inputs["target_tokens"].data},
        )
        for one in flat
    ]
    outputs = {
        key: [row.reshape(-1) if key == "logprobs" else row.repeat_interleave(columns) for row in rows]
        for key, rows in batch.outputs.items()
    }
    value, gradients = result(loss, flat, outputs)
    wanted = {
        key: [
            None if row is None else row.reshape(like.shape) if key == "logprobs" else row.reshape(len(like), -1).sum(1)
            for row, like in zip(rows, batch.outputs[key], strict=True)
        ]
        for key, rows in gradients.items()
    }
    assert_close(given, (value, wanted), 1e-9)


@every_loss
def test_an_input_of_one_column_beside_flat_targets_is_refused_by_name_or_read_as_it_is(name: str) -> None:
    loss, batch = LOSSES[name], batch_for(LOSSES[name])
    if any(part.spec.candidates for _, part in loss.parts):
        return
    vectors = {one.name for _, part in loss.parts for one in part.spec.inputs if one.is_vector}
    kept = {"weights", *vectors}  # a vector of another shape is refused: tests/losses/batch/test_checks.py
    tables = changed(batch, lambda key, values: values.unsqueeze(1) if key not in kept and values.ndim else values)
    read = {one.name for _, part in loss.parts for one in part.spec.inputs if one.per == "token"}
    if read:  # all are lossbook's own losses
        keys = "|".join(sorted(read))
        with pytest.raises(
            ShapeError, match=rf"({keys}) of datum 0 of 12 is \[1, 1\], but its target_tokens are \[1\]"
        ):
            loss(tables, batch.outputs)
    else:
        assert_close(result(loss, tables, batch.outputs), result(loss, batch.data, batch.outputs), 1e-12)


@every_loss
def test_no_datums_and_no_weight_are_refused(name: str) -> None:
    loss, batch = LOSSES[name], batch_for(LOSSES[name])
    with pytest.raises(EmptyLossError, match="there are no datums"):
        loss([], {key: [] for key in batch.outputs})
    if set(loss.outputs) <= set(DATUM_OUTPUTS):
        return  # every embedding counts
    without = changed(batch, lambda key, values: values * 0 if key == "weights" else values)
    with pytest.raises(EmptyLossError, match="so there is nothing to train on"):
        loss(without, batch.outputs)


def needs_several(part: Loss) -> bool:
    """Whether the loss says that one datum is no whole group."""
    try:
        part.spec.members(1, part.config)
    except ShapeError:
        return True
    return False


@every_loss
def test_one_datum_is_its_own_loss_or_refused(name: str) -> None:
    loss, batch = LOSSES[name], batch_for(LOSSES[name], 1)
    lacks_classes = any(one.name == "class_id" for _, part in loss.parts for one in part.spec.inputs)
    if name == "batch_all_triplet":  # a mean of what violates the margin: nothing does, and `triplets` says why
        value, metrics = loss(batch.data, batch.outputs)
        assert (float(value), metrics["triplets"]) == (0, 0)
        return
    if lacks_classes or any(part.spec.per == "pair" or needs_several(part) for _, part in loss.parts):
        with pytest.raises(EmptyLossError if lacks_classes else ShapeError, match=r"1 datum|nothing to divide by"):
            loss(batch.data, batch.outputs)
        return
    given = result(loss, batch.data, {key: [row.float() for row in rows] for key, rows in batch.outputs.items()})
    assert_close(given, result(loss, batch.data, batch.outputs), 1e-4)


@every_loss
@pytest.mark.slow
def test_thousands_of_datums_in_float32_are_those_in_float64(name: str) -> None:
    # a loss that couples the batch takes time by the square of it
    loss, batch = LOSSES[name], batch_for(LOSSES[name], 900 if LOSSES[name].couples == "batch" else 2004)
    given = result(loss, batch.data, {key: [row.float() for row in rows] for key, rows in batch.outputs.items()})
    assert_close(given, result(loss, batch.data, batch.outputs), 1e-3)


@pytest.mark.parametrize("name", list_presets())
def test_a_preset_is_called_on_data(name: str) -> None:
    for own in (name, f"{name}+correction") if describe_preset(name).correction else (name,):
        loss = get_loss(own)
        batch = batch_for(loss)
        value, gradients = result(loss, batch.data, batch.outputs)
        assert torch.isfinite(torch.tensor(value))
        reached = [
            row for rows in gradients.values() for row in rows if row is not None
        ]  # a teacher, or a weight, is not
        slopes = torch.cat([row.reshape(-1) for row in reached])
        assert torch.isfinite(slopes).all()
        assert slopes.abs().sum() > 0
