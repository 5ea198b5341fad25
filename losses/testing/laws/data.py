"""Data: the same numbers mean the same, however they are written down, and however many there are of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ....datums.errors import LossbookError, LossCheckError, LossContractError
from ....datums.inputs import key_kind
from ....datums.types import Datum, ModelInput, TensorData
from ...batch.seqs import Seqs
from ...loss.loss import Loss
from ...spec.spec import GROUP_KEY, Input
from ..by_hand import SeqsByHand
from ..checks import Check, batches, ordinary
from ..evaluation import Evaluation, evaluate, same, select, shown
from ..loss_under_test import LossUnderTest, OutputLists, has_columns, rows
from .masking import weighted

#: Reductions whose denominator does not depend on how many targets a position has.
COUNTS_NO_TARGETS = ("sum", "seq-mean-token-sum", "seq-mean-token-sum-norm")
#: Standard inputs, which are floats whatever they were made of.
FLOATS = ("advantages", "returns", "old_values", "clip_low_threshold", "clip_high_threshold", "sequence_ratio_mask")
#: More datums than a byte counts.
MANY = 260


def number_types(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Whole numbers in an input mean the same as integers and as floats."""
    whole: list[Datum] = []
    others: list[Datum] = []
    for datum in data:
        arrays = {one.name: datum.loss_fn_inputs[one.name].to_numpy() for one in _numbers(loss) if _has(datum, one)}
        rounded = {key: array if key in loss.inputs else np.ceil(array) for key, array in arrays.items()}
        given = {key: TensorData(array.astype(np.float32)) for key, array in rounded.items()}
        as_integers = {key: TensorData(array.astype(np.int64)) for key, array in rounded.items()}
        whole.append(Datum(datum.model_input, {**datum.loss_fn_inputs, **given}))
        others.append(Datum(datum.model_input, {**datum.loss_fn_inputs, **as_integers}))
    _same_numbers(
        evaluate(loss, whole, outputs),
        evaluate(loss, others, outputs),
        f"when {' and '.join(one.name for one in _numbers(loss))} held integers in place of the same numbers as floats",
    )


def one_target(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, columns: int) -> None:
    """[N, K] targets, K = 1 among them, cost what their columns cost one by one, or they are refused by name."""
    only = loss.only
    if only is None:
        raise LossCheckError("one_target is checked on each part of a mixture, not on the mixture")
    parts = [[_column(loss, datum, j) for datum in data] for j in range(columns)]
    moved = [{n: [_lowered(n, t, j) for t in ts] for n, ts in outputs.items()} for j in range(columns)]
    wide = [_side_by_side(loss, [part[i] for part in parts]) for i in range(len(data))]
    tables = {n: [_table(n, [one[n][i] for one in moved]) for i in range(len(data))] for n in outputs}
    try:
        together = evaluate(loss, wide, tables)
    except LossCheckError:
        raise
    except LossContractError as error:
        raise _unclear(columns, error) from error
    except LossbookError:
        return
    except Exception as error:  # whatever arithmetic on a table raises
        raise _unclear(columns, error) from error
    share = 1.0 if only.reduction in COUNTS_NO_TARGETS else 1 / columns
    each = [evaluate(loss, part, own) for part, own in zip(parts, moved, strict=True)]
    slopes = {
        n: [_table(n, list(gs), add=True) * share for gs in zip(*(e.gradients[n] for e in each), strict=True)]
        for n in outputs
    }
    apart = replace(each[0], value=sum(e.value for e in each) * share, gradients=slopes)
    _same_numbers(apart, together, f"when its {columns} columns of targets, [N] each, were given as [N, {columns}]")


def repeats(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists, twice: Sequence[Sequence[bool]]) -> None:
    """A token of weight 2 means the same token twice, in a loss that sums over a datum's tokens."""
    (key,) = loss.weight_keys
    binary = [_with(d, key, d.loss_fn_inputs[key].to_numpy() != 0) for d in data]
    marks = [np.array(chosen[: rows(d)]) for d, chosen in zip(data, twice, strict=True)]
    heavy = [_with(d, key, d.loss_fn_inputs[key].to_numpy() * (1 + m)) for d, m in zip(binary, marks, strict=True)]
    longer = [_repeated(d, 1 + m) for d, m in zip(binary, marks, strict=True)]
    counts = [torch.from_numpy(1 + m) for m in marks]
    others = {n: [t.repeat_interleave(c, 0) for t, c in zip(ts, counts, strict=True)] for n, ts in outputs.items()}
    one, other = evaluate(loss, heavy, outputs), evaluate(loss, longer, others)
    folded = {
        n: [torch.stack([part.sum(0) for part in g.split(c.tolist())]) for g, c in zip(gs, counts, strict=True)]
        for n, gs in other.gradients.items()
    }
    other = replace(other, gradients=folded, count=one.count)
    _same_numbers(one, other, "when tokens of weight 2 were written twice with weight 1")


def many(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """Hundreds of datums, or datums of hundreds of tokens, cost as much as their parts."""
    whole = evaluate(loss, data, outputs).total
    if loss.couples == "token" and loss.reads_tokens and not loss.candidates:
        times = MANY // min(map(rows, data)) + 1
        long = [_repeated(d, np.full(rows(d), times)) for d in data]
        expected, what = whole * times, "hundreds of times as long"
        other = evaluate(loss, long, {n: [t.repeat_interleave(times, 0) for t in ts] for n, ts in outputs.items()})
    else:
        first, own = select(data, outputs, loss.groups(data)[0])
        times = MANY // len(first) + 1
        expected, what = evaluate(loss, first, own).total * times + whole, "with hundreds more before it"
        more = [_of_another_group(datum, i) for i in range(times) for datum in first]
        other = evaluate(loss, [*more, *data], {n: [*own[n] * times, *ts] for n, ts in outputs.items()})
    tolerance = max(1e-8, whole.numel() * other.tolerance)
    if not torch.allclose(expected, other.total, rtol=tolerance, atol=tolerance * max(1.0, float(whole.abs().max()))):
        raise LossCheckError(f"the total of this data {what} is {shown(other.total)}, not {shown(expected)}")


def seqs_by_hand(loss: LossUnderTest, data: Sequence[Datum], outputs: OutputLists) -> None:
    """With sums and means over datums taken one datum at a time in float64, the loss is the same."""
    only = loss.only
    if only is None:
        raise LossCheckError("seqs_by_hand is checked on each part of a mixture, not on the mixture")

    def call(*arguments: Any, **settings: Any) -> Any:
        by_hand = [SeqsByHand.of(a) if isinstance(a, Seqs) else a for a in arguments]
        return only.spec.function(*by_hand, **settings)

    own = Loss(replace(only.spec, function=call), only.config.model_dump(exclude_none=True))
    same(
        evaluate(loss, data, outputs),
        evaluate(loss.with_wrapped(own), data, outputs),
        "when its sums were taken by hand",
    )


def _of_another_group(datum: Datum, copy: int) -> Datum:
    """The datum; where it has a `group`, in one that no other copy is in."""
    if GROUP_KEY not in datum.loss_fn_inputs:
        return datum
    moved = datum.loss_fn_inputs[GROUP_KEY].to_numpy() + 1000 * (copy + 1)
    return Datum(datum.model_input, {**datum.loss_fn_inputs, GROUP_KEY: TensorData(moved)})


def _numbers(loss: LossUnderTest) -> list[Input]:
    """Inputs that may hold integers: those whose dtype and kind are no part of the protocol."""
    return [
        one for one in loss.reads if one.kind in ("number", "flag") and one.name not in FLOATS and not one.is_vector
    ]


def _has(datum: Datum, one: Input) -> bool:
    return one.name in datum.loss_fn_inputs


def _same_numbers(a: Evaluation, b: Evaluation, how: str) -> None:
    """Value and gradients; totals, counts and metrics are other numbers for other data."""
    same(replace(a, total=b.total, count=b.count, metrics={}), replace(b, metrics={}), how)


def _unclear(columns: int, error: BaseException) -> LossCheckError:
    return LossCheckError(
        f"with target_tokens of shape [N, {columns}] the loss raises {type(error).__name__}: {error}. Let it take logprobs of "
        "shape [T, K], element by element, or raise a ShapeError that says that it has one target per position"
    )


def _column(loss: LossUnderTest, datum: Datum, j: int) -> Datum:
    """The datum with one target per position: its first column, other numbers for each j."""
    carried: dict[str, TensorData] = {}
    wide = {one.name for one in loss.reads if has_columns(one)}
    for key, value in datum.loss_fn_inputs.items():
        array = value.to_numpy()
        array = array[:, 0] if array.ndim == 2 else array
        carried[key] = TensorData(array - np.float32(0.25 * j) if key in wide and key_kind(key) == "logprob" else array)
    return Datum(datum.model_input, carried)


def _side_by_side(loss: LossUnderTest, columns: Sequence[Datum]) -> Datum:
    """One datum of [N, K] targets."""
    tables = {"target_tokens", *loss.weight_keys, *(one.name for one in loss.reads if has_columns(one))}
    carried = dict(columns[0].loss_fn_inputs)
    for key, value in carried.items():
        if key in tables and value.to_numpy().ndim == 1:
            carried[key] = TensorData(np.stack([one.loss_fn_inputs[key].to_numpy() for one in columns], axis=1))
    return Datum(columns[0].model_input, carried)


def _lowered(name: str, output: Tensor, j: int) -> Tensor:
    if name != "logprobs":
        return output
    return (output[:, 0] if output.ndim == 2 else output) - 0.25 * j


def _table(name: str, columns: list[Tensor], add: bool = False) -> Tensor:
    """[N, K] logprobs; of other outputs the only one, or their sum."""
    if name == "logprobs":
        return torch.stack(columns, 1)
    return torch.stack(columns).sum(0) if add else columns[0]


def _with(datum: Datum, key: str, values: Any) -> Datum:
    return Datum(datum.model_input, {**datum.loss_fn_inputs, key: TensorData(np.asarray(values, dtype=np.float32))})


def _repeated(datum: Datum, counts: np.ndarray) -> Datum:
    """Each position as often as `counts` says."""
    carried = {}
    for key, value in datum.loss_fn_inputs.items():
        array = value.to_numpy()
        carried[key] = TensorData(
            np.repeat(array, counts, axis=0) if array.ndim and len(array) == len(counts) else array
        )
    return Datum(ModelInput.from_ints(range(int(counts.sum()))), carried)


@st.composite
def _with_width(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    return {**draw(batches(loss, max_groups=2)), "columns": draw(st.sampled_from((1, 2)))}


@st.composite
def _with_marks(draw: Any, loss: LossUnderTest) -> dict[str, Any]:
    example = draw(weighted(loss))
    marks = [draw(st.lists(st.booleans(), min_size=rows(d), max_size=rows(d))) for d in example["data"]]
    return {**example, "twice": marks}


def _skip_number_types(loss: LossUnderTest) -> str:
    return "" if _numbers(loss) and not loss.is_batch_style else "it reads no input that may hold integers"


def _skip_one_target(loss: LossUnderTest) -> str:
    if loss.only is None:
        return "checked on each part of a mixture, not on the mixture"
    if loss.candidates is not None or loss.is_batch_style or not loss.reads_tokens:
        return "its targets are not one per position"
    return ""


def _skip_repeats(loss: LossUnderTest) -> str:
    if loss.only is None:
        return "checked on each part of a mixture, not on the mixture"
    if loss.is_batch_style or loss.wants_weights or not loss.reads_tokens:
        return "it applies weights itself, or has none"
    return "it is a loss per token, whose weights are applied outside" if loss.only.spec.per == "token" else ""


def _skip_many(loss: LossUnderTest) -> str:
    return "it couples the whole batch, so more data is other data" if loss.couples == "batch" else ""


def _skip_seqs(loss: LossUnderTest) -> str:
    if loss.only is None:
        return "checked on each part of a mixture, not on the mixture"
    return "" if "seqs" in loss.only.spec.parameters else "it does not read seqs"


CHECKS = (
    Check("number_types", number_types, ordinary, _skip_number_types),
    Check("one_target", one_target, _with_width, _skip_one_target),
    Check("repeats", repeats, _with_marks, _skip_repeats),
    Check("many", many, lambda loss: batches(loss, min_groups=2, max_groups=3, max_length=3), _skip_many),
    Check("seqs_by_hand", seqs_by_hand, ordinary, _skip_seqs),
)
