"""A reference of torch's variable-length attention for CPUs, which have none: then a CPU can take a GPU's path.

    from varlen_on_cpu import register_varlen_on_cpu
    register_varlen_on_cpu()
    with lossbook.trainer.device.taking_gpu_path(): ...

The operations that `torch.nn.attention.varlen.varlen_attn` calls get kernels for the CPU, written from its documentation: part by
part, the whole matrix of scores, in the inputs' dtype, in float32 at least. One thread computes them, so speed says nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.attention import varlen

from lossbook.trainer.packing.paths import forget_differences

#: Dtypes that the reference refuses.
_refused: frozenset[torch.dtype] = frozenset()


@contextmanager
def as_flash_attention() -> Iterator[None]:
    """Inside, the reference is there and refuses the dtypes that FlashAttention, which runs on CUDA, refuses."""
    global _refused
    register_varlen_on_cpu()
    before, _refused = _refused, frozenset({torch.float32, torch.float64})
    forget_differences()
    try:
        yield
    finally:
        _refused = before
        forget_differences()


@functools.cache
def register_varlen_on_cpu() -> None:
    """Register the reference, once for the process."""
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """query [Q, H, D], key and value [K, G, D] to outputs [Q, H, D], log-sum-exps [H, Q] and a state that is unused."""
    if query.dtype in _refused:
        raise RuntimeError(f"FlashAttention only supports fp16 and bf16, not {query.dtype}")
    if seqused_k is not None or block_table is not None or num_splits is not None:
        raise NotImplementedError("the reference has no paged keys and no splits")
    _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, enable_gqa)
    attended, sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for queries, keys in _parts(cu_seq_q, cu_seq_k):
        scores = _scores(query[queries], key[keys], scale, is_causal, window_size)
        attended[queries] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), _heads(value[keys], query)).to(query.dtype)
        sums[:, queries] = scores.logsumexp(-1).float()
    return attended, sums, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, by the formulas of softmax."""
    gradients = tuple(torch.zeros_like(x) for x in (query, key, value))
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    group = query.shape[1] // key.shape[1]
    for queries, keys in _parts(cu_seq_q, cu_seq_k):
        probabilities = _scores(query[queries], key[keys], scale, is_causal, window_size).softmax(-1)
        upstream = grad_out[queries].to(probabilities.dtype)
        by_value = torch.einsum("qhd,khd->hqk", upstream, _heads(value[keys], query))
        by_score = probabilities * (by_value - (probabilities * by_value).sum(-1, keepdim=True)) * factor
        q, k = query[queries].to(by_score.dtype), _heads(key[keys], query)
        gradients[0][queries] = torch.einsum("hqk,khd->qhd", by_score, k).to(query.dtype)
        for gradient, each in zip(
            gradients[1:],
            (torch.einsum("hqk,qhd->khd", by_score, q), torch.einsum("hqk,qhd->khd", probabilities, upstream)),
            strict=True,
        ):
            gradient[keys] = each.unflatten(1, (-1, group)).sum(2).to(key.dtype)
    return gradients


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    key_starts: Tensor,
    longest: int,
    longest_keys: int,
    gqa: bool,
) -> None:
    """What FlashAttention asks of its inputs, and what it silently computes wrongly otherwise."""
    assert starts.dtype == key_starts.dtype == torch.int32
    assert query.dtype == key.dtype == value.dtype
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0, "FlashAttention pads no heads"
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert (int(starts[-1]), int(key_starts[-1])) == (len(query), len(key))
    assert (longest, longest_keys) == (int(starts.diff().max()), int(key_starts.diff().max()))
    assert gqa or query.shape[1] == key.shape[1]


def _parts(starts: Tensor, key_starts: Tensor) -> Iterator[tuple[slice, slice]]:
    """The queries and the keys of each part of a row."""
    q, k = starts.tolist(), key_starts.tolist()
    for part in range(len(q) - 1):
        yield slice(q[part], q[part + 1]), slice(k[part], k[part + 1])


def _heads(tensor: Tensor, query: Tensor) -> Tensor:
    """[K, G, D] to [K, H, D], wide: each head of keys once for each of its heads of queries."""
    return _wide(tensor).repeat_interleave(query.shape[1] // tensor.shape[1], dim=1)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _scores(query: Tensor, key: Tensor, scale: float | None, causal: bool, window: list[int] | None) -> Tensor:
    """[H, q, k] of one part; -inf where a query sees no key. The last query stands at the last key."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", _wide(query), _heads(key, query)) * factor
    left, right = window or (-1, -1)
    right = 0 if causal else right
    ahead = torch.arange(len(key)) - torch.arange(len(key) - len(query), len(key))[:, None]
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if left >= 0:
        hidden |= -ahead > left
    if right >= 0:
        hidden |= ahead > right
    return scores.masked_fill(hidden, float("-inf"))
