"""Which code computes the head: our own tiles, or cut-cross-entropy where that is asked for by name.

cut-cross-entropy (Wijmans et al. 2024, arXiv:2411.09009; PyPI 25.1.1) gives minus the logprob of one token per position,
each with a gradient of its own, through Triton on CUDA and `torch.compile` on a CPU. It has no entropy, mean logprobs, top
k, several targets per position, or bias. Its filter, which drops small entries of the gradient, is switched off here. On
CUDA it sums gradients block by block in the dtype of the hidden states, where our tiles sum in float32. In bfloat16 it
computes a target's logit differently from the sum over the vocabulary: a likely token's logprob came out at +0.0016 on an
H200, and differs from the one that our tiles give in training. So "auto" is our own tiles.

liger-kernel 0.8.5 is not a backend: its fused linear cross-entropy gives a loss per token (`reduction="none"`) and
recomputes the logits as our `recompute` does, but it has neither entropy, top k nor several targets, and needs a GPU.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from ...datums.errors import MissingExtraError, ModelError

Backend = Literal["auto", "chunked", "cut-cross-entropy"]
ChosenBackend = Literal["chunked", "cut-cross-entropy"]


def choose_backend(
    head_backend: Backend,
    hidden: Tensor,
    weight: Tensor,
    *,
    lacking: list[str],
    wants_gradient: bool,
) -> ChosenBackend:
    """The backend for one call.

    lacking         outputs asked for that cut-cross-entropy does not have, in words
    wants_gradient  whether a backward may follow

    Raises ModelError where cut-cross-entropy is asked for and cannot serve the call, MissingExtraError where it is not
    installed.
    """
    if head_backend not in get_args(Backend):
        raise ModelError(f"head_backend must be one of {', '.join(get_args(Backend))}, not {head_backend!r}")
    if head_backend in ("auto", "chunked"):
        return "chunked"
    if lacking:
        raise ModelError(f"backend 'cut-cross-entropy' has no {', no '.join(lacking)}; take 'chunked' or 'auto'")
    if torch.float64 in (hidden.dtype, weight.dtype):
        raise ModelError("backend 'cut-cross-entropy' would round float64 to float32; take 'chunked' or 'auto'")
    if hidden.device.type == "cuda" and wants_gradient and hidden.dtype == torch.float32:
        raise ModelError("backend 'cut-cross-entropy' needs bfloat16 or float16 hidden states for a backward on CUDA")
    if not _is_installed():
        raise MissingExtraError("backend 'cut-cross-entropy' needs a package: pip install 'lossbook[cuda]'")
    return "cut-cross-entropy"


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
    logits = (scaled.float() * weight[targets].float()).sum(dim=1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = losses.clamp(min=0)
    return -losses, logits + losses


def _is_installed() -> bool:
    return importlib.util.find_spec("cut_cross_entropy") is not None
