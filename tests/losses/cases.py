"""What the tests of losses share: small datums, and a loss's value and gradient as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum, ModelInput, describe_loss, get_loss, list_losses, register_loss, unregister_loss
from lossbook.losses.batch.outputs import LISTED

#: Settings that a loss cannot do without, by id; numbers of no meaning.
NEEDED: dict[str, dict[str, Any]] = {"dr_grpo": {"norm_length": 7}}

#: With everything that any loss per token reads.
FULL: dict[str, Any] = {
    "sampling_logprobs": [-1.0, -1.5, -2.0],
    "ref_logprobs": [-1.0, -1.0, -1.0],
    "advantages": [1.0, -1.0, 0.5],
    "weights": [0.0, 1.0, 1.0],
}


def shipped() -> list[str]:
    """The ids of lossbook's own losses."""
    return [name for name in list_losses() if describe_loss(name).defined_in.startswith("lossbook.losses.")]


def with_needed(name: str, **config: Any) -> Any:
    """The loss, with the settings it cannot do without unless `config` has others."""
    needed = dict(NEEDED.get(name, {}))
    if "reduction" in config:
        needed.pop("norm_length", None)
    if config.get("reduction") == "seq-mean-token-sum-norm":
        needed["norm_length"] = 7
    return get_loss(name, **{**needed, **config})


def datum(targets: int | Sequence[Any] = 3, **inputs: Any) -> Datum:
    """A datum with that many target tokens 0, 1, 2, ..., or with the given ones ([N] or [N, K])."""
    tokens = list(range(targets)) if isinstance(targets, int) else list(targets)
    return Datum(ModelInput.from_ints(list(range(len(tokens)))), {"target_tokens": tokens, **inputs})


def rollout(*, omit: tuple[str, ...] = (), **changed: Any) -> Datum:
    """A datum with everything in FULL, except what is omitted or changed."""
    return datum(3, **{**{key: value for key, value in FULL.items() if key not in omit}, **changed})


def leaves(rows: Any) -> list[Tensor]:
    """One float64 leaf a datum."""
    return [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows]


def evaluated(loss: Any, data: Sequence[Datum], rows: Any) -> tuple[float, list[Tensor], dict[str, float]]:
    """The reduced loss, its gradient with respect to each datum's outputs, and its metrics."""
    outputs = leaves(rows)
    named = loss.outputs[0] if loss.outputs[0] not in LISTED else None
    value, metrics = loss(data, {named: outputs} if named else outputs)
    return float(value.detach()), list(torch.autograd.grad(value, outputs)), metrics


def one_token(name: str, ratio: float, advantage: float, **config: Any) -> tuple[float, float, dict[str, float]]:
    """Loss, slope and metrics of a single token whose sampler gave it 0 nats, so that its ratio is exp(logprob)."""
    loss = get_loss(name, reduction="sum", **config)
    data = [datum(1, sampling_logprobs=[-4.0], advantages=[advantage])]
    value, gradients, metrics = evaluated(loss, data, [[math.log(ratio) - 4.0]])
    return value, float(gradients[0][0]), metrics


def loss_of(function: Callable[..., Any], *, config: dict[str, Any] | None = None, **registration: Any) -> Any:
    """The loss that registering `function` gives; the registry is left as it was."""
    register_loss(function.__name__, **registration)(function)
    try:
        return get_loss(function.__name__, **(config or {}))
    finally:
        unregister_loss(function.__name__)


def assert_rows_equal(rows: Sequence[Tensor], expected: Sequence[Any], tolerance: float) -> None:
    """Row by row, within an absolute tolerance."""
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, torch.as_tensor(wanted, dtype=row.dtype), rtol=0, atol=tolerance)


def evaluated_by_name(
    loss: Any, data: Sequence[Datum], outputs: Mapping[str, Any]
) -> tuple[float, dict[str, list[Tensor]], dict[str, float]]:
    """As `evaluated`, of several outputs: {"logprobs": rows, "entropy": rows}, and the gradients under the same names."""
    own = {name: leaves(rows) for name, rows in outputs.items()}
    value, metrics = loss(data, own)
    flat = [leaf for tensors in own.values() for leaf in tensors]
    gradients = iter(torch.autograd.grad(value, flat))
    return float(value.detach()), {name: [next(gradients) for _ in tensors] for name, tensors in own.items()}, metrics
