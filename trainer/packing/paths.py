"""How attention runs over a packed row: in one call per layer where the device has an operation for it that is right.

Whether it is right is tried once for each kind of call that a model's layers make: the operation's outputs and gradients
against those of attention block by block, on numbers of the layers' shapes and dtype.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from ..device import path_of
from ..model.model import LoadedModel
from ..model.verdict import Verdict
from .attention import Call, Layout
from .block_attention import BlockAttention
from .layouts import LAYOUTS, AttentionPath, blocks, sharing
from .probes import probe_sequences, trying, verdict
from .rows import pack_row

#: What is tried on CUDA, the best first.
ONE_CALL: tuple[AttentionPath, ...] = ("varlen", "flex")
#: Weights of the smallest model for which flex_attention is compiled, which takes half a minute.
COMPILE_FROM = 50_000_000
#: How far an operation may be off, as a fraction of the norm of what attention block by block gives.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-2, torch.float32: 2e-3, torch.float64: 1e-9}


def attention_path(model: LoadedModel) -> AttentionPath:
    """How attention runs over the model's packed rows: one of LAYOUTS."""
    if path_of(model.device) != "cuda" or not (verdict(model, "sharing") or verdict(model, "blocks")):
        return "blocks"
    for path in ONE_CALL:
        if _verdict(model, path):
            return path
    return "blocks"


def _verdict(model: LoadedModel, path: AttentionPath) -> Verdict:
    if path in model.verdicts:
        return model.verdicts[path]
    with trying(model), model.precision():
        return model.tried(path, lambda: _tried(model, path))


def _tried(model: LoadedModel, path: AttentionPath) -> Verdict:
    if path == "flex" and (weights := sum(p.numel() for p in model.module.parameters())) < COMPILE_FROM:
        return Verdict(False, f"compiling flex_attention does not pay for {weights:,} weights")
    worst = 0.0
    for call in sorted(_calls(model), key=str):
        try:
            off = _difference(LAYOUTS[path], call, model.device, model.compute_dtype or call.dtype)
        except NotImplementedError as error:  # of ours: what this torch lacks
            return Verdict(False, str(error))
        except Exception as error:  # an operation may refuse a device, a dtype or a size with any error
            return Verdict(False, f"not for heads of {call.depth} in {call.dtype}: {' '.join(str(error).split())}")
        if not off <= TOLERANCE[model.compute_dtype or call.dtype]:
            return Verdict(False, f"heads of {call.depth} in {call.dtype} are off by {off:.2g} of their norm", off)
        worst = max(worst, off)
    return Verdict(True, off=worst)


def _calls(model: LoadedModel) -> set[Call]:
    """What the model's layers ask of attention, with short windows."""
    laid = (sharing if verdict(model, "sharing") else blocks)(model, probe_sequences(model))
    assert laid.layout is not None
    laid.layout.calls = calls = set[Call]()
    laid.run(model)
    return calls


def forget_differences() -> None:
    """Try operations again, for models that are yet to be judged: after an operation was replaced."""
    _difference.cache_clear()


@functools.lru_cache(maxsize=256)
def _difference(kind: type[Layout], call: Call, device: torch.device, dtype: torch.dtype) -> float:
    """How far outputs and gradients are off, the worst of them. dtype: of products, which autocast may have narrowed."""
    prompt = np.arange(70)
    row = pack_row([np.append(prompt, np.arange(n)) for n in (3, 40, 1)] + [np.arange(5, 155), np.array([1])])
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(heads: int, depth: int) -> torch.Tensor:
        numbers = torch.randn(len(row.tokens), heads, depth, generator=generator, device="cpu", dtype=torch.float64)
        return numbers.to(device, call.dtype)

    given = [
        normal(call.heads, call.depth),
        normal(call.key_heads, call.depth),
        normal(call.key_heads, call.value_depth),
    ]
    given = [tensor.requires_grad_() for tensor in given]
    factors = normal(call.heads, call.value_depth)
    results: list[list[torch.Tensor]] = []
    for each in (kind, BlockAttention):
        layout = each(row.blocks).to(device)
        with torch.enable_grad():
            attended = layout.attend(*given, dropout=0.0, scaling=call.scaling, window=call.window)
            results.append([attended.detach(), *torch.autograd.grad((attended * factors).sum(), given)])
    pairs = [(ours.double(), theirs.double()) for ours, theirs in zip(*results, strict=True)]
    offs = torch.stack([(ours - theirs).norm() / theirs.norm().clamp(min=1.0) for ours, theirs in pairs])
    return float(offs.max().nan_to_num(nan=float("inf")))
