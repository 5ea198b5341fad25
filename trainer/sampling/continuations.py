"""Prompts and their continuations in a model's KV cache: tokens in, hidden states out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...datums.errors import ModelError
from ..model.model import LoadedModel


class Continuations:
    """`num_samples` rows per prompt, in the prompts' order, all extended token by token.

    Prompts of different lengths are padded on the left and masked.

    limit          tokens that any row gets at most
    share_prompts  keep each prompt once for all its rows (see `can_share_prompts`), not in the model's own cache
    """

    def __init__(
        self, model: LoadedModel, prompts: Sequence[list[int]], num_samples: int, limit: int, *, share_prompts: bool
    ) -> None:
        self.model, self.prompts, self.num_samples = model, prompts, num_samples
        self.cache: Any = None
        self.mask: Tensor | None = None
        self.steps = 0
        self.configs: list[Any] = []
        self.takes_positions = "position_ids" in inspect.signature(model.backbone.forward).parameters
        if share_prompts:
            from .shared_prompts import SharedPromptCache, attending_configs

            self.cache, self.configs = SharedPromptCache(limit), attending_configs(model.backbone)

    def read(self) -> Tensor:
        """The last hidden states [rows, d] of the prompts, each read once for its rows."""
        width = max(map(len, self.prompts))
        padded = torch.tensor([[0] * (width - len(p)) + p for p in self.prompts], device=self.model.device)
        starts = torch.tensor([[width - len(p)] for p in self.prompts], device=self.model.device)
        mask = torch.arange(width, device=padded.device) >= starts  # [prompts, width]
        options = {} if not starts.any() else self._padding_options(mask, (mask.cumsum(1) - 1).clamp(min=0))
        output = self.model.backbone(input_ids=padded, use_cache=True, **options, **self._own_cache())
        self.cache = output.past_key_values
        if self.cache is None:
            raise ModelError(f"{self.model.name} keeps no cache that sampling could extend")
        if self.num_samples > 1 or self.configs:
            self.cache.batch_repeat_interleave(self.num_samples)
        if options:
            self.mask = mask.repeat_interleave(self.num_samples, 0)
        return output.last_hidden_state[:, -1].repeat_interleave(self.num_samples, 0)

    def extend(self, tokens: Tensor) -> Tensor:
        """Hidden states [rows, d] after one more token [rows] each."""
        options = {}
        if self.mask is not None:
            positions = self.mask.sum(1, keepdim=True)
            self.mask = nn.functional.pad(self.mask, (0, 1), value=True)
            options = self._padding_options(self.mask, positions)
        with self._attention():
            output = self.model.backbone(
                input_ids=tokens[:, None], past_key_values=self.cache, use_cache=True, **options
            )
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these, given in ascending order."""
        self.cache.batch_select_indices(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]

    def _own_cache(self) -> dict[str, Any]:
        return {} if self.cache is None else {"past_key_values": self.cache}

    def _attention(self) -> Any:
        if not self.configs:
            return nullcontext()
        from .shared_prompts import attending

        return attending(self.configs)

    def _padding_options(self, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        return {"attention_mask": mask.long()} | ({"position_ids": positions} if self.takes_positions else {})


_verdicts: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def can_share_prompts(model: LoadedModel) -> bool:
    """Whether hidden states with shared prompts equal those with the model's own cache; tried once per module."""
    module = model.module
    if module not in _verdicts:
        try:
            _verdicts[module] = _same_hidden_states(model)
        except Exception:  # an architecture with another kind of state may fail with any error
            _verdicts[module] = False
    return _verdicts[module]


def _same_hidden_states(model: LoadedModel) -> bool:
    """Compare both caches on two padded prompts with two rows each, of which one is dropped halfway."""
    tokens = [token % model.vocab_size for token in range(1, 6)]
    hidden = []
    for share_prompts in (False, True):
        rows = Continuations(model, [tokens[:3], tokens[:2]], 2, 2, share_prompts=share_prompts)
        rows.read()
        first = rows.extend(torch.tensor(tokens[:4], device=model.device))
        kept = torch.tensor([0, 2, 3], device=model.device)
        rows.keep(kept)
        hidden.append(torch.cat([first, rows.extend(torch.tensor(tokens[2:], device=model.device))]).double())
    own, ours = hidden
    tolerance = 64 * torch.finfo(next(model.module.parameters()).dtype).eps * own.abs().max().clamp(min=1.0)
    return bool((own - ours).abs().max() <= tolerance)
