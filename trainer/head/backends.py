"""Which code computes the head: our own tiles, or cut-cross-entropy where it serves what is asked for.

cut-cross-entropy (Wijmans et al. 2024, arXiv:2411.09009; PyPI 25.1.1) gives minus the logprob of one token a position
with a gradient of its own for each, through Triton on CUDA and through `torch.compile` on a CPU. What it does not have:
entropy, mean logprobs, top k, several targets a position, a bias. Its filter, which drops small entries of the
gradient, is switched off here. On CUDA it adds up gradients in the dtype of the hidden states, block after block, where
our tiles add up in float32; and of bfloat16 it computes a target's logit otherwise than the sum over the vocabulary, so that
a likely token's logprob came out at +0.0016 on an H200, and differs from the one that our tiles give in training. So it is
taken only where it is asked for by name; "auto" is our own tiles.

liger-kernel 0.8.5 is not among the backends: its fused linear cross-entropy has a loss a token
(`reduction="none"`) that recomputes the logits as our `recompute` does, but neither entropy, top k nor several targets,
and it runs on a GPU only.
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
    backend: Backend,
    hidden: Tensor,
    weight: Tensor,
    *,
    lacking: list[str],
    wants_gradient: bool,
) -> ChosenBackend:
    """The backend that will compute this.

    lacking         what is asked for and cut-cross-entropy does not have, in words
    wants_gradient  whether a backward may follow

    Raises ModelError if cut-cross-entropy was asked for by name and cannot serve it, MissingExtraError if it is not
    installed.
    """
    if backend not in get_args(Backend):
        raise ModelError(f"backend must be one of {', '.join(get_args(Backend))}, not {backend!r}")
    if backend in ("auto", "chunked"):
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
    """Logprobs and logsumexp [M] float32 of M >= 1 positions' one target each, differentiable.

    A scale other than a power of two is rounded into the hidden states' dtype. The library has no logsumexp; it is the
    target's logit less its logprob. Logprobs that rounding put above 0 are 0, without a gradient.
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
