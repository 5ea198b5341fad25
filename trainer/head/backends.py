"""Which code computes the head: our own tiles, or cut-cross-entropy or Liger where these are asked for by name.

cut-cross-entropy (Wijmans et al. 2024, arXiv:2411.09009; PyPI 25.1.1) gives minus the logprob of one token per position,
each with a gradient of its own, through Triton on CUDA and `torch.compile` on a CPU. It has no entropy, mean logprobs, top
k, several targets per position, or bias. Its filter, which drops small entries of the gradient, is switched off here. On
CUDA it sums gradients block by block in the dtype of the hidden states, where our tiles sum in float32. In bfloat16 it
computes a target's logit differently from the sum over the vocabulary: a likely token's logprob came out at +0.0016 on an
H200, and differs from the one that our tiles give in training. So "auto" is our own tiles.

Liger (Hsu et al. 2024, arXiv:2410.10989; liger-kernel 0.8.5) gives minus the logprob of one token per position and, where it
is asked for, the softmax's entropy, both differentiable with gradients of their own, at any temperature. It has no mean
logprobs, top k, several targets per position, bias or soft cap. On a Hopper GPU (compute capability 9.0) it is one kernel for
bfloat16, written in CuTe (pip install 'liger-kernel[cutedsl]'); elsewhere, also on a CPU, it is plain torch, 512 positions at
a time, which rounds narrow logits, entropies and sums of the weight's gradient to their own dtype and reads the device. It was
run here on a CPU, not on a GPU; so "auto" is our own tiles.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ...datums.errors import MissingExtraError, ModelError
from .tiles import product_dtype

Backend = Literal["auto", "chunked", "cut-cross-entropy", "liger"]
ChosenBackend = Literal["chunked", "cut-cross-entropy", "liger"]

#: Of what a call may ask for, what a library does not have.
LACKING = {
    "cut-cross-entropy": ("entropy", "mean logprobs", "top k", "second target", "bias"),
    "liger": ("mean logprobs", "top k", "second target", "bias", "soft cap"),
}
#: The packages that a library needs.
PACKAGES = {"cut-cross-entropy": ("cut_cross_entropy",), "liger": ("liger_kernel", "triton")}


def choose_backend(
    head_backend: Backend,
    hidden: Tensor,
    weight: Tensor,
    *,
    asked: Sequence[str],
    wants_gradient: bool,
) -> ChosenBackend:
    """The backend for one call.

    asked           what the call asks for beside logprobs, in the words of LACKING
    wants_gradient  whether a backward may follow

    Raises ModelError where a library is asked for and cannot serve the call, MissingExtraError where it is not installed.
    """
    if head_backend not in get_args(Backend):
        raise ModelError(f"head_backend must be one of {', '.join(get_args(Backend))}, not {head_backend!r}")
    if head_backend in ("auto", "chunked"):
        return "chunked"
    instead = "take 'chunked' or 'auto'"
    if lacking := [what for what in asked if what in LACKING[head_backend]]:
        raise ModelError(f"backend {head_backend!r} has no {', no '.join(lacking)}; {instead}")
    dtypes = {hidden.dtype, weight.dtype}
    if torch.float64 in dtypes:
        raise ModelError(f"backend {head_backend!r} would round float64 to float32; {instead}")
    if (
        head_backend == "cut-cross-entropy"
        and hidden.device.type == "cuda"
        and wants_gradient
        and hidden.dtype == torch.float32
    ):
        raise ModelError("backend 'cut-cross-entropy' needs bfloat16 or float16 hidden states for a backward on CUDA")
    if not all(importlib.util.find_spec(package) for package in PACKAGES[head_backend]):
        raise MissingExtraError(f"backend {head_backend!r} needs a package: pip install 'lossbook[cuda]'")
    if head_backend == "liger" and _is_hopper(hidden.device):
        if dtypes != {torch.bfloat16}:
            raise ModelError(f"backend 'liger' needs bfloat16 hidden states and weight on this GPU; {instead}")
        if importlib.util.find_spec("cutlass") is None:
            raise MissingExtraError("backend 'liger' needs a package: pip install 'liger-kernel[cutedsl]'")
    return head_backend


def cut_cross_entropy_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Logprobs and logsumexp [M] float32 at M >= 1 positions with one target each, differentiable.

    A scale that is no power of two is rounded to the hidden states' dtype. The library gives no logsumexp; it is computed
    as the target's logit minus its logprob. Logprobs that rounding puts above 0 become 0, without a gradient.
    """
    from cut_cross_entropy import linear_cross_entropy

    scaled = hidden if scale == 1.0 else hidden * scale
    if hidden.device.type == "cpu":
        scaled, weight = scaled.float(), weight.float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of torch's own compiler
        losses = linear_cross_entropy(
            scaled,
            weight,
            targets,
            softcap=softcap,
            reduction="none",
            filter_eps=None,
            impl="torch_compile" if hidden.device.type == "cpu" else "cce",
        )
    losses = losses.clamp(min=0)
    return -losses, losses + _target_logits(scaled, weight, targets, softcap)


def liger_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, *, entropy: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logprobs, logsumexp and, if asked for, entropy [M] float32 at M >= 1 positions with one target each, differentiable.

    The logsumexp is computed as in `cut_cross_entropy_logprobs`.
    """
    operations = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    dtype = product_dtype(hidden, weight)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    computed = operations.LigerFusedLinearScaledCrossEntropyFunction.apply(
        hidden, weight, targets, temperature=1 / scale, return_entropy=entropy
    )
    losses, entropies = computed if entropy else (computed, None)
    losses = losses.float().clamp(min=0)
    logsumexp = losses + scale * _target_logits(hidden, weight, targets, None)
    return -losses, logsumexp, None if entropies is None else entropies.float()


def _target_logits(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    logits = (hidden.float() * weight[targets].float()).sum(dim=1)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)
