"""Token losses: the loss and its gradient at each token, recomputed from the outputs that the trainer returned.

    output = training.forward_backward(batch, loss).result()
    for sequence in token_losses(loss, batch, output.loss_fn_outputs):
        print(sequence.columns["gradient"])          # d loss / d logprob at each position, as the trainer sent it back

The loss is called again on the CPU with the data of the whole call: its denominator, and the values of a loss that
couples datums, depend on all of them. `token_records.py` writes the results into a run's folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import LengthMismatchError, LossContractError, NonDifferentiableLossError
from ...datums.types import Datum, TensorData, as_datum
from ...losses.batch.positions import positions_of
from ...losses.loss.loss import Loss, LossLike
from ...losses.math.ratios import MAX_LOG_RATIO
from ...losses.registry import get_loss
from ...losses.spec.settings import WEIGHTS_KEY
from ...losses.spec.top import TOP_OUTPUTS, TOP_TOKENS

#: Model outputs with one row per position: the output's name, and its column's.
TOKEN_COLUMNS = {
    "logprobs": "logprob",
    "entropy": "entropy",
    "logsumexp": "logsumexp",
    "mean_logprobs": "mean_logprob",
    "values": "value",
}
#: Outputs that a call returns under another name.
SHOWN_AS = {"embeddings": "embedding", "topk_tokens": "top_k_indices", "topk_logprobs": "top_k_logprobs"}
#: Inputs of the datum that are shown: the column, and the keys that may hold it.
INPUT_COLUMNS = {
    "sampling_logprob": ("sampling_logprobs", "logprobs"),
    "ref_logprob": ("ref_logprobs",),
    "teacher_logprob": ("teacher_logprobs",),
    "advantage": ("advantages",),
}

#: By output name, one tensor per datum.
OutputLists = dict[str, list[Tensor]]


@dataclass(frozen=True)
class TokenLosses:
    """The values and gradients of a loss for one datum of N positions. Position t is about token t + 1 of the text.

    datum     its index in the call
    columns   [N], or [N, K] with K targets per position, float64; NaN where there is no number, as at masked positions:
              weight; logprob, entropy and other model outputs that the loss reads; sampling_logprob, ref_logprob,
              advantage and other inputs of the datum; ratio = exp(logprob - sampling_logprob);
              gradient = d loss / d logprob of the whole call's loss, its denominator included; entropy_gradient and so on
              for other outputs;
              loss = the values of a loss per token, before weighting and reduction (of a mixture, the sum over its parts
              per token, each times its factor)
    losses    by the label of the loss (a mixture has several): a value, and whether it belongs to the "token" (then the
              weighted mean over this datum's tokens), "datum", "pair" or "batch"; before factors and reduction
    embedding_gradient   norm of d loss / d embedding, if the loss reads embeddings
    """

    datum: int
    columns: dict[str, np.ndarray]
    losses: dict[str, tuple[float, str]]
    embedding_gradient: float | None = None


def token_losses(loss: Any, data: Sequence[Any], outputs: Sequence[Mapping[str, Any]]) -> list[TokenLosses]:
    """The values and gradients of `loss` at each token of each datum of one call.

    loss      anything that `get_loss` takes
    data      all datums of the call
    outputs   `loss_fn_outputs` of that call, one mapping per datum

    Raises LengthMismatchError if data and outputs differ in number, LossContractError if an output that the loss reads is
    missing, NonDifferentiableLossError if the loss does not depend on the outputs, and the loss's own errors.
    """
    loss, datums = get_loss(loss), [as_datum(datum) for datum in data]
    leaves = _leaves(loss, datums, outputs)
    # A loss that draws random numbers must not change those of the run.
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        bound = loss.prepare(datums)
        totals, _ = bound.terms(leaves)
        values = _part_values(loss, datums, leaves, totals / _divisors(totals, bound.count.values))
        gradients = _gradients(loss, totals / bound.count, leaves)
    is_read = _positions_read(loss, bound.active, bound.lengths)
    parts = [_PartValues(part, factor, value, datums) for (factor, part), value in zip(loss.parts, values, strict=True)]
    return [_token_losses(i, datum, leaves, gradients, is_read[i], parts) for i, datum in enumerate(datums)]


def _leaves(loss: LossLike, datums: Sequence[Datum], outputs: Sequence[Mapping[str, Any]]) -> OutputLists:
    """The outputs that the loss reads, as leaves of a new graph, in their own dtype."""
    if len(outputs) != len(datums):
        raise LengthMismatchError(
            f"outputs of {len(outputs)} datums for {len(datums)} datums: pass the data and the loss_fn_outputs of one whole "
            "call"
        )
    leaves: OutputLists = {}
    for name in loss.outputs:
        key = SHOWN_AS.get(name, name)
        without = next((i for i, output in enumerate(outputs) if key not in output), None)
        if without is not None:
            raise LossContractError(
                f"{loss.name} reads {key!r}, which the outputs of datum {without} do not hold (they hold "
                f"{', '.join(outputs[without]) or 'nothing'}), so its gradient cannot be computed. Are they outputs of "
                "another loss?"
            )
        copies = [_tensor(output[key]).detach().clone() for output in outputs]
        leaves[name] = [copy.requires_grad_(copy.is_floating_point()) for copy in copies]
    return leaves


def _tensor(value: Any) -> Tensor:
    if isinstance(value, TensorData):
        return value.to_torch()
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)


def _divisors(totals: Tensor, values: Sequence[float | None]) -> Tensor:
    return torch.tensor([1.0 if value is None else value for value in values]).to(totals).reshape(totals.shape)


def _part_values(loss: LossLike, datums: Sequence[Datum], leaves: OutputLists, means: Tensor) -> list[Tensor]:
    """The unreduced values of each part; a part that returns a scalar gives that scalar."""
    values: list[Tensor] = []
    for (factor, part), mean in zip(loss.parts, means.detach().reshape(-1), strict=True):
        if part.spec.is_batch_style or part.spec.per == "batch":
            values.append((mean / factor if factor else torch.full_like(mean, torch.nan)).reshape(()))
        else:
            values.append(part.values(datums, {name: leaves[name] for name in part.outputs}).detach())
    return values


def _gradients(loss: LossLike, value: Tensor, leaves: OutputLists) -> OutputLists:
    """d value / d outputs, one tensor per datum."""
    leaves = {name: tensors for name, tensors in leaves.items() if name != TOP_TOKENS}
    flat = [leaf for tensors in leaves.values() for leaf in tensors]
    if not value.requires_grad:
        raise NonDifferentiableLossError(f"{loss.name} does not depend on {' or '.join(leaves)}: it has no gradient")
    gradients = iter(torch.autograd.grad(value, flat, allow_unused=True))
    return {
        name: [torch.zeros_like(leaf) if (gradient := next(gradients)) is None else gradient for leaf in tensors]
        for name, tensors in leaves.items()
    }


def _positions_read(loss: LossLike, active: Tensor, lengths: np.ndarray) -> list[np.ndarray]:
    """For each datum [N] bool: the positions whose model outputs the loss reads."""
    if not any(name in (*TOKEN_COLUMNS, *TOP_OUTPUTS) for name in loss.outputs):
        return [np.zeros(length, dtype=bool) for length in lengths]
    return np.split(active.numpy(), np.cumsum(lengths)[:-1])


class _PartValues:
    """The values of one part of a loss, and the datums or tokens they belong to."""

    def __init__(self, part: Loss, factor: float, values: Tensor, datums: Sequence[Datum]) -> None:
        self.name, self.factor, self.weights = part.label, factor, part.weights or WEIGHTS_KEY
        self.per = "batch" if values.ndim == 0 else str(part.spec.per)
        self._values = values.double().numpy()
        if self.per == "batch":
            return
        packed = part.pack(datums)
        if self.per == "token":
            rows = np.full((len(packed.active), *self._values.shape[1:]), np.nan)
            rows[packed.active.numpy()] = self._values
            self._rows = np.split(rows, np.cumsum(packed.lengths)[:-1])
        else:
            self._indices = _value_indices(part, packed.active_datums, len(self._values))

    def tokens(self, datum: int) -> np.ndarray | None:
        """[N] or [N, K]: the value at each position, NaN where there is none; None unless the loss is per token."""
        return self._rows[datum] if self.per == "token" else None

    def value(self, datum: int, weight: np.ndarray) -> float:
        """The value that this datum contributes to; NaN if there is none."""
        if self.per == "batch":
            return float(self._values)
        if self.per != "token":
            index = self._indices.get(datum)
            return float("nan") if index is None else float(self._values[index])
        rows = self._rows[datum]
        weights = np.where(np.isnan(rows), 0.0, _like(weight, rows))
        total = weights.sum()
        return float(np.nansum(weights * np.nan_to_num(rows)) / total) if total else float("nan")


def _value_indices(part: Loss, kept: np.ndarray, count: int) -> dict[int, int]:
    """By datum, the index of its value among `count` values."""
    if part.spec.per == "pair":
        return {int(datum): i // 2 for i, datum in enumerate(kept)}
    if count == len(kept):
        return {int(datum): i for i, datum in enumerate(kept)}
    groups = datum_groups(part, len(kept))  # fewer values than datums: a query and its document share one
    if len(groups) != count:
        return {}
    return {int(kept[member]): i for i, group in enumerate(groups) for member in group}


def datum_groups(loss: LossLike, count: int) -> list[list[int]]:
    """The groups that `count` datums form: pairs, a query with its document, or single datums."""
    for _, part in loss.parts:
        if (members := part.spec.members(count, part.config)) is not None:
            return members
        if part.spec.per == "pair" or part.spec.couples == "pair":
            return [[i, i + 1] for i in range(0, count - 1, 2)]
    return [[i] for i in range(count)]


def _token_losses(
    index: int,
    datum: Datum,
    leaves: OutputLists,
    gradients: OutputLists,
    is_read: np.ndarray,
    parts: Sequence[_PartValues],
) -> TokenLosses:
    keys = [part.weights for part in parts]
    columns = {"weight": _weights(datum, WEIGHTS_KEY if WEIGHTS_KEY in keys else keys[0])}
    for name, column in TOKEN_COLUMNS.items():
        if name in leaves:
            output, gradient = leaves[name][index].detach(), gradients[name][index]
            mask = _candidates_read(is_read, columns["weight"], output) if name == "logprobs" else is_read
            columns[column] = _where(mask, output)
            columns["gradient" if name == "logprobs" else f"{column}_gradient"] = _where(mask, gradient)
    columns.update(_input_columns(datum, is_read))
    if "logprob" in columns and "sampling_logprob" in columns and columns["logprob"].ndim == 1:
        gap = columns["logprob"] - columns["sampling_logprob"]
        columns["ratio"] = np.exp(np.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if (total := _summed(index, parts)) is not None:
        columns["loss"] = total
    losses = {part.name: (part.value(index, _weights(datum, part.weights)), part.per) for part in parts}
    embedded = gradients.get("embeddings")
    return TokenLosses(index, columns, losses, None if embedded is None else float(embedded[index].norm()))


def _weights(datum: Datum, key: str) -> np.ndarray:
    given = datum.loss_fn_inputs.get(key)
    if given is not None:
        weights = given.to_numpy().astype(np.float64)
        targets = datum.loss_fn_inputs.get("target_tokens")
        is_flat = targets is not None and weights.size == np.prod(targets.shape) and weights.ndim == 1
        return weights.reshape(targets.shape) if is_flat and targets is not None else weights
    return np.ones(positions_of(datum))


def _candidates_read(is_read: np.ndarray, weight: np.ndarray, logprobs: Tensor) -> np.ndarray:
    """[N], or [N, K] with K targets per position; a target of weight 0 is not read."""
    if logprobs.ndim == 1:
        return is_read
    if weight.shape == logprobs.shape:
        return is_read[:, None] & (weight != 0)
    return np.broadcast_to(is_read[:, None], logprobs.shape)


def _where(mask: np.ndarray, values: Tensor) -> np.ndarray:
    return np.where(mask, values.double().numpy(), np.nan)


def _input_columns(datum: Datum, is_read: np.ndarray) -> dict[str, np.ndarray]:
    """The datum's own numbers per token; a single number is repeated. NaN where nothing is read."""
    columns: dict[str, np.ndarray] = {}
    for column, keys in INPUT_COLUMNS.items():
        given = next((datum.loss_fn_inputs[key] for key in keys if key in datum.loss_fn_inputs), None)
        if given is None or not is_read.any():
            continue
        values = given.to_numpy().astype(np.float64)
        if values.size == 1 or values.shape == is_read.shape:
            columns[column] = np.where(is_read, values.reshape(-1), np.nan)
    return columns


def _summed(index: int, parts: Sequence[_PartValues]) -> np.ndarray | None:
    """The sum of the parts per token, each times its factor; None if there is no such part."""
    scaled = [part.factor * rows for part in parts if (rows := part.tokens(index)) is not None]
    if not scaled:
        return None
    widest = max(scaled, key=lambda rows: rows.ndim)
    rows = np.stack([_like(each, widest) for each in scaled])
    return np.where(np.isnan(rows).all(0), np.nan, np.nansum(rows, 0))


def _like(rows: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """`rows` in the shape of `wide`: [N] is repeated over K targets, [N, K] is summed over them."""
    if rows.ndim == wide.ndim:
        return rows
    return np.broadcast_to(rows[:, None], wide.shape) if rows.ndim < wide.ndim else rows.sum(1)
