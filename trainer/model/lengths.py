"""What of a model depends on the length of a whole sequence: a rotation that switches, as longrope's does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .model import LoadedModel

#: Windows inside `short_windows`, in tokens.
SHORT_WINDOW = 5
#: Settings that limit how far a token sees, on configurations and on attention modules.
WINDOWS = (
    *("sliding_window", "sliding_window_size", "window_size", "attention_window_size", "local_attention"),
    "attention_chunk_size",
)
#: Settings that say how many tokens a token chooses to see.
CHOICES = ("index_topk", "keep_window_size")


def switch_length(model: LoadedModel) -> int | None:
    """The length in tokens above which every position of a sequence is rotated in another way; None where there is none.

    longrope (Ding et al. 2024, arXiv:2402.13753) has two sets of frequencies. transformers takes the long one for all
    positions of a forward whose last position lies at `original_max_position_embeddings` or beyond.
    """
    if model.kind != "decoder":
        return None
    config = model.config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    sets = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    for each in sets:
        if each.get("rope_type") == "longrope":
            length = each.get("original_max_position_embeddings") or config.original_max_position_embeddings
            return int(length)
    return None


def chooses_tokens(model: LoadedModel) -> str | None:
    """Why the tokens that a token sees may depend on the row's length; None where they do not.

    Sparse attention takes the keys of highest score. Scores of many keys are equal (0 after a ReLU), and which of those
    torch.topk takes depends on how many columns there are, so on padding and on what a cache holds.
    """
    config = model.config.get_text_config()
    for name in CHOICES:
        value = getattr(config, name, None)
        if isinstance(value, int) and (model.max_length is None or value < model.max_length):
            return f"a token sees the {value} tokens of highest score ({name}), and ties fall otherwise in a longer row"
    return None


def by_side(model: LoadedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of sequences that one forward may read together: those on the same side of the model's switch."""
    switch = switch_length(model)
    if switch is None:
        return [list(range(len(lengths)))]
    sides = [[i for i, length in enumerate(lengths) if (length > switch) == beyond] for beyond in (False, True)]
    return [side for side in sides if side]


def cut_on_its_side(model: LoadedModel, lengths: np.ndarray, read: np.ndarray) -> np.ndarray:
    """For each sequence of `lengths` [N] tokens, how many to compute so that the first `read` [N] are as in the whole."""
    switch = switch_length(model)
    return read if switch is None else np.where(lengths > switch, np.maximum(read, switch + 1), read)


@torch.no_grad()
def rotation_looks_ahead(model: LoadedModel) -> str | None:
    """The name of a rotary module that rotates a position in another way when the row is longer; None if there is none.

    A switch that `switch_length` names is not counted. Tried from 8 positions to the model's limit.
    """
    limit = min(model.max_length or 4096, switch_length(model) or 1 << 62)
    short = torch.arange(8, device=model.device)[None]
    long = torch.cat([short, torch.full_like(short[:, :1], limit - 1)], 1)
    for name, module in model.backbone.named_modules():
        if not hasattr(module, "rope_type") or limit <= 8:
            continue
        kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: None}
        for kind in kinds:
            one, other = (_rotation(module, positions, kind)[..., :8, :] for positions in (short, long))
            if one.shape != other.shape or not torch.equal(one, other):
                return name
    return None


def _rotation(module: nn.Module, positions: torch.Tensor, kind: Any) -> torch.Tensor:
    like = torch.zeros(1, positions.shape[1], 1, device=positions.device, dtype=torch.float32)
    given = () if kind is None else (kind,)
    try:
        cosine, *_ = module(like, positions, *given)
    except Exception:  # a rotation of another form; the probes of whole rows see what it does
        return torch.zeros(8, 1, device="cpu")
    return cosine


@contextmanager
def short_windows(model: LoadedModel) -> Iterator[None]:
    """Inside, a window or chunk of attention is SHORT_WINDOW tokens, so that a few tokens reach beyond it."""
    parts: list[Any] = list(model.module.modules())
    configs = {id(part.config): part.config for part in parts if hasattr(part, "config")}
    changed = []
    try:
        for owner in (*configs.values(), *parts):
            for name in WINDOWS:
                try:
                    value = getattr(owner, name, None)
                except RuntimeError:  # where windows differ by layer, a configuration gives none for all
                    continue
                if isinstance(value, int) and not isinstance(value, bool) and value > SHORT_WINDOW:
                    changed.append((owner, name, value))
                    setattr(owner, name, SHORT_WINDOW)
        yield
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)
