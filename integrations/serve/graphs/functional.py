"""Functions of torch.nn.functional: activations, losses, distances and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kinds import Problem
from .shapes import check_places
from .signature import Operation, operation

_REDUCTION = "reduction:'none|mean|sum'?"
_OLD = "size_average:NO?, reduce:NO?"
#: Activations that are torch.nn.functional's own, and those that torch has under a private name.
_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "selu": F.selu,
    "silu": F.silu,
    "mish": F.mish,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
}
_PLAIN: dict[str, Callable[..., Tensor]] = {
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
}
_LOSSES: dict[str, Callable[..., Tensor]] = {"mse_loss": F.mse_loss, "l1_loss": F.l1_loss}


def _nll_targets(input: Tensor, target: Tensor, *rest: Any, ignore_index: int = -100, **named: Any) -> None:
    if target.is_floating_point():
        return
    classes = input.shape[0 if input.ndim == 1 else 1] if input.ndim else 0
    check_places(classes, target[target != ignore_index], "target", 0)


def _classes(input: Tensor, num_classes: int) -> None:
    check_places(num_classes, input, "one_hot", 0)


def _probabilities(input: Tensor, target: Tensor, *rest: Any, **named: Any) -> None:
    if input.numel() and not bool(((input >= 0) & (input <= 1)).all()):
        raise Problem("torch.nn.functional.binary_cross_entropy: input must be between 0 and 1")


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return F.cosine_similarity(x1, x2, dim, eps)


OPERATIONS: tuple[Operation, ...] = (
    *[
        operation(f"torch.nn.functional.{name}", call, "input:T, *, inplace:OFF?")
        for name, call in _ACTIVATIONS.items()
    ],
    *[operation(f"torch.nn.functional.{name}", call, "input:T") for name, call in _PLAIN.items()],
    operation("torch.nn.functional.logsigmoid torch._C._nn.log_sigmoid", F.logsigmoid, "input:T"),
    operation("torch.nn.functional.gelu torch._C._nn.gelu", F.gelu, "input:T, *, approximate:'none|tanh'?"),
    operation("torch.nn.functional.softplus torch._C._nn.softplus", F.softplus, "input:T, beta:N?, threshold:N?"),
    operation("torch.nn.functional.softshrink torch._C._nn.softshrink", F.softshrink, "input:T, lambd:N?"),
    operation("torch.nn.functional.elu", F.elu, "input:T, alpha:N?, *, inplace:OFF?"),
    operation("torch.nn.functional.celu", F.celu, "input:T, alpha:N?, *, inplace:OFF?"),
    operation("torch.nn.functional.leaky_relu", F.leaky_relu, "input:T, negative_slope:N?, *, inplace:OFF?"),
    operation("torch.nn.functional.hardtanh", F.hardtanh, "input:T, min_val:N?, max_val:N?, *, inplace:OFF?"),
    operation("torch.nn.functional.hardshrink torch.hardshrink", F.hardshrink, "input:T, lambd:N?"),
    operation("torch.nn.functional.glu", F.glu, "input:T, dim:D?"),
    operation(
        "torch.threshold torch.nn.functional.threshold",
        torch.threshold,
        "input:T, threshold:N, value:N, *, inplace:OFF?",
    ),
    *[
        operation(f"torch.nn.functional.{name}", call, f"input:T, target:T, *, {_OLD}, {_REDUCTION}, weight:T?")
        for name, call in _LOSSES.items()
    ],
    operation(
        "torch.nn.functional.smooth_l1_loss",
        F.smooth_l1_loss,
        f"input:T, target:T, *, {_OLD}, {_REDUCTION}, beta:N?",
    ),
    operation(
        "torch.nn.functional.huber_loss",
        F.huber_loss,
        "input:T, target:T, reduction:'none|mean|sum'?, delta:N?, weight:T?",
    ),
    operation(
        "torch.nn.functional.kl_div",
        F.kl_div,
        f"input:T, target:T, *, {_OLD}, reduction:'none|mean|sum|batchmean'?, log_target:B?",
    ),
    operation(
        "torch.nn.functional.binary_cross_entropy",
        F.binary_cross_entropy,
        f"input:T, target:T, weight:T?, *, {_OLD}, {_REDUCTION}",
        guard=_probabilities,
    ),
    operation(
        "torch.nn.functional.binary_cross_entropy_with_logits",
        F.binary_cross_entropy_with_logits,
        f"input:T, target:T, weight:T?, *, {_OLD}, {_REDUCTION}, pos_weight:T?",
    ),
    operation(
        "torch.nn.functional.nll_loss",
        F.nll_loss,
        f"input:T, target:T, weight:T?, *, {_OLD}, ignore_index:I?, {_REDUCTION}",
        guard=_nll_targets,
    ),
    operation(
        "torch.nn.functional.cross_entropy",
        F.cross_entropy,
        f"input:T, target:T, weight:T?, *, {_OLD}, ignore_index:I?, {_REDUCTION}, label_smoothing:N?",
        guard=_nll_targets,
    ),
    operation(
        "torch.nn.functional.poisson_nll_loss",
        F.poisson_nll_loss,
        f"input:T, target:T, log_input:B?, full:B?, *, {_OLD}, eps:N?, {_REDUCTION}",
    ),
    operation(
        "torch.nn.functional.margin_ranking_loss",
        F.margin_ranking_loss,
        f"input1:T, input2:T, target:T, margin:N?, *, {_OLD}, {_REDUCTION}",
    ),
    operation(
        "torch.nn.functional.hinge_embedding_loss",
        F.hinge_embedding_loss,
        f"input:T, target:T, margin:N?, *, {_OLD}, {_REDUCTION}",
    ),
    operation(
        "torch.nn.functional.soft_margin_loss", F.soft_margin_loss, f"input:T, target:T, *, {_OLD}, {_REDUCTION}"
    ),
    operation("torch.nn.functional.normalize", F.normalize, "input:T, p:N?, dim:D?, eps:N?, *, out:NO?"),
    operation(
        "torch.nn.functional.layer_norm",
        F.layer_norm,
        "input:T, normalized_shape:S, weight:T?, bias:T?, eps:N?",
    ),
    operation(
        "torch.nn.functional.cosine_similarity torch.cosine_similarity",
        _cosine_similarity,
        "x1:T, x2:T, dim:D?, eps:N?",
    ),
    operation(
        "torch.nn.functional.pairwise_distance torch.pairwise_distance",
        F.pairwise_distance,
        "x1:T, x2:T, p:N?, eps:N?, keepdim:B?",
    ),
    operation("torch.nn.functional.linear torch._C._nn.linear", F.linear, "input:T, weight:T, bias:T?"),
    operation("torch.nn.functional.pad", F.pad, "input:T, pad:PAD, mode:'constant'?, value:N?"),
    operation("torch.nn.functional.one_hot torch._C._nn.one_hot", F.one_hot, "input:T, num_classes:C", guard=_classes),
)
