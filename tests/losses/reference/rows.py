"""Datums as rows of NumPy arrays without their masked positions, and the reductions over them, written a second time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossbook import Datum

from .complex_step import derivatives

Array = np.ndarray

#: Capped so that a ratio cannot overflow.
MAX_LOG_RATIO = 20.0


@dataclass
class Row:
    """One datum at its positions of non-zero weight.

    `row["logprobs"]` is a model output or an input by name: [n], [n, K], or a number for an input per datum. An input
    that is optional and absent is None, or use `row.get`.
    """

    values: dict[str, Any]
    weights: Array

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def __len__(self) -> int:
        return len(self.weights)


#: Rows and settings to values: a list of arrays (one per row) per token, an array per datum or pair, a number per batch.
Reference = Callable[..., Any]


def evaluated(
    reference: Reference,
    data: Sequence[Datum],
    outputs: dict[str, list[Array]],
    *,
    per: str,
    reduction: str,
    norm_length: int | None = None,
    candidates: str | None = None,
    **settings: Any,
) -> tuple[float, dict[str, list[Array]]]:
    """The reduced value of a reference and its gradient with respect to the outputs, by complex step."""
    names = [(name, i) for name, tensors in outputs.items() for i in range(len(tensors))]

    def value(points: list[Array]) -> complex:
        by_name: dict[str, list[Array]] = {name: [] for name in outputs}
        for (name, _), point in zip(names, points, strict=True):
            by_name[name].append(point)
        rows = [row for row in rows_of(data, by_name, candidates) if len(row)]
        return reduced(reference(rows, **settings), rows, per, reduction, norm_length)

    total, flat = derivatives(value, [outputs[name][i] for name, i in names])
    gradients: dict[str, list[Array]] = {name: [] for name in outputs}
    for (name, _), gradient in zip(names, flat, strict=True):
        gradients[name].append(gradient)
    return total, gradients


def rows_of(data: Sequence[Datum], outputs: dict[str, list[Array]], candidates: str | None) -> list[Row]:
    """One row per datum, without its positions of weight 0; datums without targets keep their one vector."""
    rows: list[Row] = []
    for i, datum in enumerate(data):
        inputs = {key: np.asarray(value.to_numpy(), dtype=np.float64) for key, value in datum.loss_fn_inputs.items()}
        if "embeddings" in outputs and "logprobs" not in outputs:
            rows.append(Row({"embeddings": outputs["embeddings"][i], **inputs}, np.ones(1)))
            continue
        length = len(inputs["target_tokens"])
        shape = (length,) if candidates else inputs["target_tokens"].shape
        weights = inputs.pop("weights", np.ones(shape)).reshape(shape)
        active = (weights.reshape(length, -1) != 0).any(axis=1)
        values: dict[str, Any] = {}
        for key, array in {**inputs, **{name: tensors[i] for name, tensors in outputs.items()}}.items():
            is_per_position = array.ndim > 0 and len(array) == length and key not in ONE_A_DATUM
            values[key] = array[active] if is_per_position else array.reshape(-1)[0]
        rows.append(Row(values, weights[active]))
    return rows


#: Inputs of one number a datum, which on a datum of one token look like one number a position.
ONE_A_DATUM = {"label", "margin", "is_mismatched", "shift", "group", "is_positive"}


def reduced(values: Any, rows: Sequence[Row], per: str, reduction: str, norm_length: int | None) -> complex:
    """Σ w l over its denominator, as the table of reductions in README has it."""
    if per == "batch":
        return complex(values)
    if per != "token":
        total = complex(np.sum(values))
        return total if reduction == "sum" else total / len(values)
    assert len(values) == len(rows)
    # Beside K targets a position, a value of the position counts for each of them.
    values = [v if v.ndim == r.weights.ndim else v[:, None] for r, v in zip(rows, values, strict=True)]
    sums = [complex(np.sum(np.where(r.weights != 0, r.weights * v, 0))) for r, v in zip(rows, values, strict=True)]
    own = [float(r.weights.sum()) for r in rows]
    if reduction == "sum":
        return sum(sums)
    if reduction == "token-mean":
        return sum(sums) / sum(own)
    if reduction == "seq-mean-token-mean":
        return sum(s / w for s, w in zip(sums, own, strict=True)) / len(rows)
    if reduction == "seq-mean-token-sum":
        return sum(sums) / len(rows)
    if reduction == "prompt-mean":
        members = {row["group"]: [i for i, one in enumerate(rows) if one["group"] == row["group"]] for row in rows}
        means = [sum(sums[i] for i in own_rows) / sum(own[i] for i in own_rows) for own_rows in members.values()]
        return sum(means) / len(means)
    assert reduction == "seq-mean-token-sum-norm"
    assert norm_length
    return sum(sums) / (len(rows) * norm_length)
