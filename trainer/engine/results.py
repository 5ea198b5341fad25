"""Results of a call: each datum's outputs and the metrics, collected while its micro-batches run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...datums.errors import NonFiniteLossError
from ...datums.types import Datum, TensorData
from ...losses import stats
from ...losses.batch.outputs import Outputs
from ...losses.batch.pack import join
from ...losses.batch.positions import active_in, active_targets, nll, width_of
from ...losses.loss.bound import BoundLoss
from ...losses.reductions import Count
from ...losses.spec.layers import LAYER_EMBEDDINGS
from ...losses.spec.top import TOP_OUTPUTS
from ...losses.spec.vocabulary import VOCABULARY_OUTPUTS
from ...losses.stats import Kind, Stat
from ..responses import ForwardBackwardOutput
from .checks import TOKEN_OUTPUTS
from .group_report import Arrived

#: Outputs of one row per datum, and as what each is returned.
PER_DATUM = {"embeddings": "embedding", LAYER_EMBEDDINGS: LAYER_EMBEDDINGS}
#: Outputs that are returned under the names that the Fireworks API gives them.
RETURNED_AS = {"topk_tokens": "top_k_indices", "topk_logprobs": "top_k_logprobs"}


@dataclass
class Collected:
    """Loss, metrics and outputs of the micro-batches so far."""

    loss: float = 0.0
    datums_without_grad: int = 0
    metrics: dict[str, Stat] = field(default_factory=dict)
    outputs: dict[int, dict[str, TensorData]] = field(default_factory=dict)

    def add(self, arrived: Arrived) -> None:
        """Add what a group of datums reported."""
        part, order = arrived.group.part, arrived.group.order
        self.loss += arrived.value
        self.metrics = stats.merge([self.metrics, with_nll(arrived.metrics, part, arrived.outputs)])
        self.datums_without_grad += arrived.datums_without_gradient()
        self.outputs.update(zip(order, per_datum(part.datums, part.lengths, arrived.outputs), strict=True))

    def in_order(self, datums: int, own: Iterable[int]) -> list[dict[str, TensorData]]:
        """One dict for each of the call's `datums`, in its order; {} for those that are not this rank's `own`."""
        chosen = set(own)
        return [self.outputs[i] if i in chosen else {} for i in range(datums)]


def per_datum(
    datums: Sequence[Datum], lengths: np.ndarray, outputs: Outputs, top_k: int | None = None
) -> list[dict[str, TensorData]]:
    """Each datum's outputs in its own shape; 0.0 where a position was not computed. Views of one array per output.

    lengths: [N] positions of each datum. outputs: on the host, without a graph. top_k: how many of the likeliest tokens, where
    the loss reads more.
    """
    results: list[dict[str, TensorData]] = [{} for _ in datums]
    ends = np.cumsum(lengths).tolist()
    for name in TOKEN_OUTPUTS:
        values: Tensor | None = getattr(outputs, name)
        if values is None or name in VOCABULARY_OUTPUTS:
            continue
        values = values[:, :top_k] if name in TOP_OUTPUTS else values
        array, start = (values.float() if values.is_floating_point() else values).numpy(), 0
        if outputs.active is not None:
            full = np.zeros((len(outputs.active), *array.shape[1:]), dtype=array.dtype)
            full[outputs.active.numpy()] = array
            array = full
        for result, datum, end in zip(results, datums, ends, strict=True):
            rows = array[start:end]
            result[RETURNED_AS.get(name, name)] = TensorData.view(
                _as_targets(rows, datum) if name == "logprobs" else rows
            )
            start = end
    for name, returned in PER_DATUM.items():
        if (values := getattr(outputs, name)) is not None:
            for result, row in zip(results, values.float().numpy(), strict=True):
                result[returned] = TensorData.view(row)
    return results


def _as_targets(rows: np.ndarray, datum: Datum) -> np.ndarray:
    """Rows [N] or [N, K] in the shape of the datum's targets: padding columns dropped."""
    targets = None if rows.ndim == 1 else datum.loss_fn_inputs.get("target_tokens")
    if targets is None:
        return rows
    return rows[:, : targets.shape[1]] if len(targets.shape) == 2 else rows[:, 0]


def stat_of(kind: Kind, value: float | Sequence[float], count: float = 1.0) -> Stat:
    """A number that the trainer reports itself; `value` is a mean's sum over `count`, or what `Stat.total` holds."""
    return Stat(kind, torch.tensor(value, dtype=torch.float64), torch.tensor(count, dtype=torch.float64))


def loss_stat(loss: float, count: Count) -> Stat:
    """The loss of one call: a sum where it is one, else a mean over its denominator."""
    if all(value is None for value in count.values):
        return stat_of("sum", loss)
    first = count.values[0]
    if first is None or any(value != first for value in count.values):  # a mixture with several denominators
        return stat_of("mean", loss)
    return stat_of("mean", loss * first, first)


def count_metrics(bound: BoundLoss) -> dict[str, Stat]:
    """Metrics that depend on data alone: counts of datums, response tokens and response sequences, and the denominator."""
    count, (tokens, sequences) = bound.count, response_tokens(bound)
    metrics = {"datums": len(bound.datums), "response_tokens": tokens, "response_sequences": sequences}
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


def trained_output(
    bound: BoundLoss, collected: Collected, own: Iterable[int], *, forward_passes: float, micro_batches: int
) -> ForwardBackwardOutput:
    """The output of a forward and backward over a whole call, with the outputs of the datums in `own`.

    Raises NonFiniteLossError where the loss is not finite.
    """
    if not np.isfinite(collected.loss):
        raise NonFiniteLossError(f"{bound.name}: the loss is {collected.loss}, though its inputs are finite")
    metrics = {
        "loss:sum": loss_stat(collected.loss, bound.count),
        "forward_passes": stat_of("max", float(forward_passes)),
        "micro_batches": stat_of("sum", micro_batches),
        "datums_without_grad": stat_of("sum", collected.datums_without_grad),
        **count_metrics(bound),
    }
    results = collected.in_order(len(bound.datums), own)
    return output_of(results, collected.loss, metrics, collected.metrics, bound.name)


def forward_output(bound: BoundLoss, collected: Collected, own: Iterable[int]) -> ForwardBackwardOutput:
    """The output of a forward over a whole call, with the outputs of the datums in `own`."""
    metrics = {
        "loss:sum": loss_stat(collected.loss, bound.count),
        "forward_passes": stat_of("max", 1.0),
        **count_metrics(bound),
    }
    results = collected.in_order(len(bound.datums), own)
    return output_of(results, collected.loss, metrics, collected.metrics, bound.name)


def with_loss_metrics(own: Mapping[str, Stat], reported: Mapping[str, Stat], name: str) -> dict[str, Stat]:
    """The trainer's metrics and the loss's. One of the loss that has the name of a trainer's becomes `<loss>/<name>`."""
    return {**own, **{f"{name}/{key}" if key in own else key: value for key, value in reported.items()}}


def with_nll(metrics: dict[str, Stat], bound: BoundLoss, outputs: Outputs) -> dict[str, Stat]:
    """The metrics with `nll`, the mean -logprob in nats of weighted targets, where a loss over logprobs has none of its own.

    Not where K targets share one weight: these are candidates to compare, and no single one is meant to be likely.
    """
    if outputs.logprobs is None or any(key.split("/")[-1] == "nll" for key in metrics):
        return metrics
    arrays = []
    for datum in bound.datums:
        shape = datum.loss_fn_inputs["target_tokens"].shape
        weights = [datum.loss_fn_inputs.get(key) for key in bound.weight_keys]
        if any(one is not None and one.shape != shape and one.shape == shape[:1] for one in weights):
            return metrics
        counts = [np.ones(shape) if one is None else one.to_numpy().reshape(shape) != 0 for one in weights]
        arrays.append(np.any(counts, axis=0))
    active = active_targets(join(arrays, width_of(bound.datums), np.float64))
    if outputs.active is not None:
        active = active[outputs.active.numpy()]
    return {"nll": nll(outputs.logprobs, torch.from_numpy(active)), **metrics}


def response_tokens(bound: BoundLoss) -> tuple[int, int]:
    """Positions with a non-zero weight, and datums that have any; without weights every target position counts."""
    active = [active_in(datum, bound.weight_keys) for datum in bound.datums]
    counts = np.array([np.count_nonzero(one) for one in active], dtype=np.int64)
    return int(counts.sum()), int((counts > 0).sum())
