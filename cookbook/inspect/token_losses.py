"""What a loss made of every token, from the outputs that the trainer returned for it.

    output = training.forward_backward(batch, loss).result()
    for sequence in examine(loss, batch, output.loss_fn_outputs):
        print(sequence.columns["gradient"])          # d loss / d logprob of each position, as the trainer sent it back

The loss is called again on the CPU, on the whole call's data, because its denominator and, where it couples datums, its
values need all of them. `microscope.py` writes what is found into a run's folder.
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
from ...losses.batch.pack import positions_of
from ...losses.loss.loss import Loss
from ...losses.loss.mixture import Mixture
from ...losses.math.ratios import MAX_LOG_RATIO
from ...losses.registry import get_loss

#: Model outputs with one row a position, and what a token's number of each is called.
TOKEN_COLUMNS = {
    "logprobs": "logprob",
    "entropy": "entropy",
    "logsumexp": "logsumexp",
    "mean_logprobs": "mean_logprob",
    "values": "value",
}
#: What is shown of the data: the column, and the keys it may lie under.
INPUT_COLUMNS = {
    "sampling_logprob": ("sampling_logprobs", "logprobs"),
    "ref_logprob": ("ref_logprobs",),
    "teacher_logprob": ("teacher_logprobs",),
    "advantage": ("advantages",),
}

#: By output name, one tensor a datum.
OutputLists = dict[str, list[Tensor]]


@dataclass(frozen=True)
class Examined:
    """What a loss made of one datum of N positions (position t is target token t, the text's token t + 1).

    datum     its number in the call
    columns   [N], or [N, K] beside K targets, float64; NaN where there is no number, as at masked positions:
              weight; logprob, entropy and others that the loss reads of the model; sampling_logprob, ref_logprob,
              advantage and others that the datum carries; ratio = exp(logprob - sampling_logprob);
              gradient = d loss / d logprob of the whole call's loss, its denominator included; of another output
              entropy_gradient and so on;
              loss = what a loss per token returned, before weighting and reduction (of a mixture, its parts per token
              added up, each times its factor)
    losses    by the loss's id (a mixture has several): a value and what it is of, "token" (then the weighted mean over
              this datum's tokens), "datum", "pair" or "batch"; before factors and reduction
    embedding_gradient   norm of d loss / d embedding, where the loss reads embeddings
    """

    datum: int
    columns: dict[str, np.ndarray]
    losses: dict[str, tuple[float, str]]
    embedding_gradient: float | None = None


def examine(loss: Any, data: Sequence[Any], outputs: Sequence[Mapping[str, Any]]) -> list[Examined]:
    """What `loss` made of each datum of one call.

    loss: whatever `get_loss` takes. data: the call's datums, all of them. outputs: `loss_fn_outputs` of that call, one
    mapping a datum. Raises LossContractError when they lack an output that the loss reads, and the loss's own errors.
    """
    loss, datums = get_loss(loss), [as_datum(datum) for datum in data]
    leaves = _leaves(loss, datums, outputs)
    # A loss that draws random numbers must not change those of the run it is looked at in.
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        prepared = loss.prepare(datums)
        totals, _ = prepared.terms(leaves)
        values = _part_values(loss, datums, leaves, totals / _divisors(totals, prepared.count.values))
        gradients = _gradients(loss, totals / prepared.count, leaves)
    is_read = _positions_read(loss, prepared.active, prepared.lengths)
    spread = [_Spread(part, factor, value, datums) for (factor, part), value in zip(_parts(loss), values, strict=True)]
    return [_examined(i, datum, leaves, gradients, is_read[i], spread) for i, datum in enumerate(datums)]


def _parts(loss: Loss | Mixture) -> list[tuple[float, Loss]]:
    return loss.parts if isinstance(loss, Mixture) else [(1.0, loss)]


def _leaves(loss: Loss | Mixture, datums: Sequence[Datum], outputs: Sequence[Mapping[str, Any]]) -> OutputLists:
    """The outputs that the loss reads, as leaves of a new graph, in the precision in which they were returned."""
    if len(outputs) != len(datums):
        raise LengthMismatchError(
            f"outputs of {len(outputs)} datums for {len(datums)} datums: hand over one whole call, its data and its "
            "loss_fn_outputs"
        )
    leaves: OutputLists = {}
    for name in loss.outputs:
        key = "embedding" if name == "embeddings" else name
        lacking = next((i for i, output in enumerate(outputs) if key not in output), None)
        if lacking is not None:
            raise LossContractError(
                f"{loss.name} reads {key!r}, which the outputs of datum {lacking} do not hold (they hold "
                f"{', '.join(outputs[lacking]) or 'nothing'}), so its gradient cannot be worked out. Are they of a call "
                "with another loss?"
            )
        leaves[name] = [_tensor(output[key]).detach().clone().requires_grad_() for output in outputs]
    return leaves


def _tensor(value: Any) -> Tensor:
    if isinstance(value, TensorData):
        return value.to_torch()
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float32)


def _divisors(totals: Tensor, values: Sequence[float | None]) -> Tensor:
    return torch.tensor([1.0 if value is None else value for value in values]).to(totals).reshape(totals.shape)


def _part_values(loss: Loss | Mixture, datums: Sequence[Datum], leaves: OutputLists, means: Tensor) -> list[Tensor]:
    """What each part returned, unreduced; of a part with a scalar, which it reduced itself, that scalar."""
    found: list[Tensor] = []
    for (factor, part), mean in zip(_parts(loss), means.detach().reshape(-1), strict=True):
        if part.spec.is_batch_style or part.spec.per == "batch":
            found.append((mean / factor if factor else torch.full_like(mean, torch.nan)).reshape(()))
        else:
            found.append(part.values(datums, {name: leaves[name] for name in part.outputs}).detach())
    return found


def _gradients(loss: Loss | Mixture, value: Tensor, leaves: OutputLists) -> OutputLists:
    """d value / d outputs, one tensor a datum."""
    flat = [leaf for tensors in leaves.values() for leaf in tensors]
    if not value.requires_grad:
        raise NonDifferentiableLossError(f"{loss.name} does not depend on {' or '.join(leaves)}: it has no gradient")
    found = iter(torch.autograd.grad(value, flat, allow_unused=True))
    return {
        name: [torch.zeros_like(leaf) if (g := next(found)) is None else g for leaf in tensors]
        for name, tensors in leaves.items()
    }


def _positions_read(loss: Loss | Mixture, active: Tensor, lengths: np.ndarray) -> list[np.ndarray]:
    """A bool for each position of each datum: whether the loss reads the model's outputs there."""
    if not any(name in TOKEN_COLUMNS for name in loss.outputs):
        return [np.zeros(length, dtype=bool) for length in lengths]
    return np.split(active.numpy(), np.cumsum(lengths)[:-1])


class _Spread:
    """One part's values, and whose they are."""

    def __init__(self, part: Loss, factor: float, values: Tensor, datums: Sequence[Datum]) -> None:
        self.name, self.factor = part.name, factor
        self.per = "batch" if values.ndim == 0 else str(part.spec.per)
        self._values = values.double().numpy()
        if self.per == "batch":
            return
        packed = part.pack(datums)
        if self.per == "token":
            everywhere = np.full((len(packed.active), *self._values.shape[1:]), np.nan)
            everywhere[packed.active.numpy()] = self._values
            self._rows = np.split(everywhere, np.cumsum(packed.lengths)[:-1])
        else:
            self._places = _places(part, packed.kept, len(self._values))

    def tokens(self, datum: int) -> np.ndarray | None:
        """[N] or [N, K]: the loss of each position, NaN where there is none; None unless it is per token."""
        return self._rows[datum] if self.per == "token" else None

    def value(self, datum: int, weight: np.ndarray) -> float:
        """The value that this datum has a part in; NaN where it has none."""
        if self.per == "batch":
            return float(self._values)
        if self.per != "token":
            place = self._places.get(datum)
            return float("nan") if place is None else float(self._values[place])
        rows = self._rows[datum]
        weights = np.where(np.isnan(rows), 0.0, _like(weight, rows))
        total = weights.sum()
        return float(np.nansum(weights * np.nan_to_num(rows)) / total) if total else float("nan")


def _places(part: Loss, kept: np.ndarray, count: int) -> dict[int, int]:
    """Datum to the place of its value."""
    if part.spec.per == "pair":
        return {int(datum): i // 2 for i, datum in enumerate(kept)}
    if count == len(kept):
        return {int(datum): i for i, datum in enumerate(kept)}
    groups = partners(part, len(kept))  # fewer values than datums: a query and its document have one together
    if len(groups) != count:
        return {}
    return {int(kept[member]): i for i, group in enumerate(groups) for member in group}


def partners(loss: Loss | Mixture, count: int) -> list[list[int]]:
    """Which of `count` datums belong together: pairs, a query and its document, or each one alone."""
    for _, part in _parts(loss):
        if (members := part.spec.members(count, part.config)) is not None:
            return members
        if part.spec.per == "pair" or part.spec.couples == "pair":
            return [[i, i + 1] for i in range(0, count - 1, 2)]
    return [[i] for i in range(count)]


def _examined(
    number: int,
    datum: Datum,
    leaves: OutputLists,
    gradients: OutputLists,
    is_read: np.ndarray,
    parts: Sequence[_Spread],
) -> Examined:
    columns = {"weight": _weights(datum, positions_of(datum))}
    for name, column in TOKEN_COLUMNS.items():
        if name in leaves:
            is_there = (
                is_read if name != "logprobs" else _candidates_read(is_read, columns["weight"], leaves[name][number])
            )
            columns[column] = _where(is_there, leaves[name][number].detach())
            columns["gradient" if name == "logprobs" else f"{column}_gradient"] = _where(
                is_there, gradients[name][number]
            )
    columns.update(_input_columns(datum, is_read))
    if "logprob" in columns and "sampling_logprob" in columns and columns["logprob"].ndim == 1:
        gap = columns["logprob"] - columns["sampling_logprob"]
        columns["ratio"] = np.exp(np.clip(gap, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if (losses := _token_losses(number, parts)) is not None:
        columns["loss"] = losses
    found = {part.name: (part.value(number, columns["weight"]), part.per) for part in parts}
    embedded = gradients.get("embeddings")
    return Examined(number, columns, found, None if embedded is None else float(embedded[number].norm()))


def _weights(datum: Datum, positions: int) -> np.ndarray:
    given = datum.loss_fn_inputs.get("weights")
    if given is not None:
        weights = given.to_numpy().astype(np.float64)
        targets = datum.loss_fn_inputs.get("target_tokens")
        is_flat = targets is not None and weights.size == np.prod(targets.shape) and weights.ndim == 1
        return weights.reshape(targets.shape) if is_flat and targets is not None else weights
    return np.ones(positions)


def _candidates_read(is_read: np.ndarray, weight: np.ndarray, logprobs: Tensor) -> np.ndarray:
    """[N], or [N, K] beside K targets: a target of weight 0 is not read either."""
    if logprobs.ndim == 1:
        return is_read
    if weight.shape == logprobs.shape:
        return is_read[:, None] & (weight != 0)
    return np.broadcast_to(is_read[:, None], logprobs.shape)


def _where(is_there: np.ndarray, values: Tensor) -> np.ndarray:
    return np.where(is_there, values.double().numpy(), np.nan)


def _input_columns(datum: Datum, is_read: np.ndarray) -> dict[str, np.ndarray]:
    """What the datum carries for its tokens, a number for all of them spread over them; NaN where nothing is read."""
    found: dict[str, np.ndarray] = {}
    for column, keys in INPUT_COLUMNS.items():
        given = next((datum.loss_fn_inputs[key] for key in keys if key in datum.loss_fn_inputs), None)
        if given is None or not is_read.any():
            continue
        values = given.to_numpy().astype(np.float64)
        if values.size == 1 or values.shape == is_read.shape:
            found[column] = np.where(is_read, values.reshape(-1), np.nan)
    return found


def _token_losses(number: int, parts: Sequence[_Spread]) -> np.ndarray | None:
    """The losses of the parts per token, factors applied, added up."""
    scaled = [part.factor * rows for part in parts if (rows := part.tokens(number)) is not None]
    if not scaled:
        return None
    widest = max(scaled, key=lambda rows: rows.ndim)
    rows = np.stack([_like(each, widest) for each in scaled])
    return np.where(np.isnan(rows).all(0), np.nan, np.nansum(rows, 0))


def _like(rows: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """[N] or [N, K] in the shape of [N, K] or [N]: spread over targets, or summed over them."""
    if rows.ndim == wide.ndim:
        return rows
    return np.broadcast_to(rows[:, None], wide.shape) if rows.ndim < wide.ndim else rows.sum(1)
