"""Results of a call: each datum's outputs and the metrics, collected while its micro-batches run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...datums.types import Datum, TensorData
from ...losses import stats
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import join
from ...losses.batch.positions import active_in, active_targets, nll, width_of
from ...losses.loss.bound import BoundLoss
from ...losses.reductions import Count
from ...losses.stats import Kind, Stat
from ..responses import ForwardBackwardOutput
from .checks import TOKEN_OUTPUTS


@dataclass
class Collected:
    """Loss, metrics and outputs of the micro-batches so far."""

    loss: float = 0.0
    datums_without_grad: int = 0
    metrics: dict[str, Stat] = field(default_factory=dict)
    outputs: dict[int, dict[str, TensorData]] = field(default_factory=dict)

    def add(
        self,
        order: Sequence[int],
        bound: BoundLoss,
        outputs: Outputs,
        value: Tensor,
        metrics: dict[str, Stat],
        gradients: dict[str, Tensor],
    ) -> None:
        """Add the loss, its metrics and its gradients for the datums of `bound` whose indices are `order`."""
        datums, lengths = [bound.datums[i] for i in order], bound.lengths[order]
        self.loss += float(value.detach())
        self.metrics = stats.merge([self.metrics, with_nll(metrics, datums, outputs)])
        self.datums_without_grad += _datums_without_grad(lengths, outputs, gradients)
        self.outputs.update(zip(order, per_datum(datums, lengths, outputs), strict=True))

    def in_order(self) -> list[dict[str, TensorData]]:
        """One dict per datum, in the call's order."""
        return [self.outputs[i] for i in range(len(self.outputs))]


def per_datum(datums: Sequence[Datum], lengths: np.ndarray, outputs: Outputs) -> list[dict[str, TensorData]]:
    """Each datum's outputs in its own shape; 0.0 where a position was not computed. Views of one array per output.

    lengths: [N] positions of each datum.
    """
    results: list[dict[str, TensorData]] = [{} for _ in datums]
    ends = np.cumsum(lengths).tolist()
    for name in TOKEN_OUTPUTS:
        values: Tensor | None = getattr(outputs, name)
        if values is None:
            continue
        rows = values.detach().float().cpu()
        if outputs.active is not None:
            full = rows.new_zeros(len(outputs.active), *rows.shape[1:])
            full[outputs.active.cpu()] = rows
            rows = full
        array, start = rows.numpy(), 0
        for result, datum, end in zip(results, datums, ends, strict=True):
            result[name] = TensorData.view(_as_targets(array[start:end], datum))
            start = end
    if outputs.embeddings is not None:
        for result, row in zip(results, outputs.embeddings.detach().float().cpu().numpy(), strict=True):
            result["embedding"] = TensorData.view(row)
    return results


def _as_targets(rows: np.ndarray, datum: Datum) -> np.ndarray:
    """Rows [N] or [N, K] in the shape of the datum's targets: padding columns dropped."""
    targets = None if rows.ndim == 1 else datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        return rows
    return rows[:, : targets.shape[1]] if len(targets.shape) == 2 else rows[:, 0]


def stat_of(kind: Kind, value: float, count: float = 1.0) -> Stat:
    """A number that the trainer reports itself; `value` is a mean's sum over `count`."""
    return Stat(kind, torch.tensor(value, dtype=torch.float64), torch.tensor(count, dtype=torch.float64))


def loss_stat(loss: float, count: Count) -> Stat:
    """The loss of one call: a sum where it is one, else a mean over its denominator."""
    if all(value is None for value in count.values):
        return stat_of("sum", loss)
    first = count.values[0]
    if first is None or any(value != first for value in count.values):  # a mixture with several denominators
        return stat_of("mean", loss)
    return stat_of("mean", loss * first, first)


def count_metrics(datums: Sequence[Datum], count: Count) -> dict[str, Stat]:
    """Metrics that depend on data alone: counts of datums, response tokens and response sequences, and the denominator."""
    tokens, sequences = response_tokens(datums)
    metrics = {"datums": len(datums), "response_tokens": tokens, "response_sequences": sequences}
    names = [f"denominator_{i}" for i in range(len(count.values))] if len(count.values) > 1 else ["denominator"]
    return {
        **{name: stat_of("sum", number) for name, number in metrics.items()},
        **{
            name: stat_of("max", 1.0) if value is None else stat_of("sum", value)
            for name, value in zip(names, count.values, strict=True)
        },
    }


def output_of(
    results: list[dict[str, TensorData]], loss: float, own: Mapping[str, Stat], reported: Mapping[str, Stat], name: str
) -> ForwardBackwardOutput:
    """The output of a call: each datum's outputs, and the metrics of the trainer (`own`) and of the loss `name`."""
    metrics = with_loss_metrics(own, reported, name)
    return ForwardBackwardOutput(results, {**stats.values(metrics), "loss:sum": loss}, stats=metrics)


def with_loss_metrics(own: Mapping[str, Stat], reported: Mapping[str, Stat], name: str) -> dict[str, Stat]:
    """The trainer's metrics and the loss's. One of the loss that has the name of a trainer's becomes `<loss>/<name>`."""
    return {**own, **{f"{name}/{key}" if key in own else key: value for key, value in reported.items()}}


def with_nll(metrics: dict[str, Stat], datums: Sequence[Datum], outputs: Outputs) -> dict[str, Stat]:
    """The metrics with `nll`, the mean -logprob in nats of weighted targets, where a loss over logprobs has none of its own.

    Not where K targets share one weight: these are candidates to compare, and no single one is meant to be likely.
    """
    if outputs.logprobs is None or any(key.split("/")[-1] == "nll" for key in metrics):
        return metrics
    arrays = []
    for datum in datums:
        targets, weights = datum.loss_fn_inputs["target_tokens"], datum.loss_fn_inputs.get("weights")
        if weights is not None and weights.shape != targets.shape and weights.shape == targets.shape[:1]:
            return metrics
        arrays.append(np.ones(targets.shape) if weights is None else weights.to_numpy().reshape(targets.shape))
    active = active_targets(torch.from_numpy(join(arrays, width_of(datums), np.float64)))
    if outputs.active is not None:
        active = active[outputs.active.cpu()]
    return {"nll": nll(outputs.logprobs, active.to(outputs.logprobs.device)), **metrics}


def response_tokens(datums: Sequence[Datum]) -> tuple[int, int]:
    """Positions with a non-zero weight, and datums that have any; without weights every target position counts."""
    counts = np.array([np.count_nonzero(active_in(datum)) for datum in datums], dtype=np.int64)
    return int(counts.sum()), int((counts > 0).sum())


def _datums_without_grad(lengths: np.ndarray, outputs: Outputs, gradients: dict[str, Tensor]) -> int:
    moved = np.zeros(len(lengths), dtype=bool)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for name, gradient in gradients.items():
        rows = ((gradient if gradient.ndim == 1 else gradient.abs().amax(1)) != 0).cpu().numpy()
        if name == "embeddings":
            moved |= rows
        else:
            owners = owner if outputs.active is None else owner[outputs.active.cpu().numpy()]
            moved[owners[rows]] = True
    return int((~moved).sum())
