"""Prompts and their continuations: tokens in, hidden states out, through a model's cache or without one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...datums.errors import ModelError
from ..model.lengths import switch_length
from ..model.model import LoadedModel
from ..packing.attention import attending
from ..packing.hidden import hidden_states
from ..packing.probes import verdict


class Continuations:
    """`num_samples` rows per prompt, in the prompts' order, all extended token by token.

    Prompts of different lengths are padded on the left and masked. Where the model rotates in another way beyond some
    length (`switch_length`), rows that cross it are read anew; there all prompts need one length.

    Tokens stay on the device until something needs them on the host.

    limit          tokens that any row gets at most
    share_prompts  keep each prompt once for all its rows, not in the model's own cache
    cached         False: read every row as a whole for each token
    """

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[list[int]],
        num_samples: int,
        limit: int,
        *,
        share_prompts: bool,
        cached: bool = True,
    ) -> None:
        self.model, self.prompts, self.num_samples, self.cached = model, prompts, num_samples, cached
        self._rows = [list(prompt) for prompt in prompts for _ in range(num_samples)]
        self.unread: list[Tensor] = []
        self.positions = torch.empty(0, device="cpu")
        self.length, self.longest = len(self._rows[0]), 0
        self.switch = switch_length(model)
        self.cache: Any = None
        self.mask: Tensor | None = None
        self.attention: str | None = None
        accepted = inspect.signature(model.backbone.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.last = (model.max_length or 1 << 62) - 1
        self.cache_name = "cache_params" if "cache_params" in accepted else "past_key_values"
        if share_prompts:
            from .shared_prompts import NAME, SharedPromptCache

            self.cache, self.attention = SharedPromptCache(limit), NAME

    @property
    def rows(self) -> list[list[int]]:
        """The tokens of each row. Tokens that it was extended by are read from the device when they are asked for."""
        if self.unread:
            for row, tokens in zip(self._rows, torch.stack(self.unread, 1).tolist(), strict=True):
                row.extend(tokens)
            self.unread = []
        return self._rows

    def read(self) -> Tensor:
        """The last hidden states [rows, d] of the prompts, each read once for its rows."""
        if not self.cached:
            return self._whole_rows()
        return self._prefill(self.prompts, self.num_samples)

    def extend(self, tokens: Tensor) -> Tensor:
        """Hidden states [rows, d] after one more token [rows] each."""
        self.unread.append(tokens)
        self.length += 1
        if not self.cached:
            return self._whole_rows()
        if self.switch is not None and self.length == self.switch + 1:
            self.cache, self.attention, self.mask = None, None, None  # its keys are rotated as in shorter rows
            return self._prefill(self.rows, 1)
        self.positions = self.positions + 1
        self.longest += 1
        if self.longest > self.last:  # rows that have ended do not leave the context
            self.positions.clamp_(max=self.last)
        if self.mask is not None:
            self.mask = nn.functional.pad(self.mask, (0, 1), value=True)
        options = self._options(self.mask, self.positions)
        with attending(self.model, self.attention):
            output = self.model.backbone(input_ids=tokens[:, None], use_cache=True, **options, **self._own_cache())
        return output.last_hidden_state[:, -1]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all rows but these, given in ascending order; returns them."""
        self._rows = [self.rows[row] for row in rows]
        kept = torch.tensor(rows, device=self.model.device)
        if self.attention is not None:
            self.cache.batch_select_indices(kept)
        elif self.cache is not None:
            self.cache.reorder_cache(kept)
        if self.mask is not None:
            self.mask = self.mask[kept]
        if self.cached:
            self.positions = self.positions[kept]
        return list(rows)

    def _prefill(self, prompts: Sequence[list[int]], repeats: int) -> Tensor:
        """Read prompts into the cache, and give each `repeats` rows there."""
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self.model.device)
        starts = torch.tensor([[width - len(p)] for p in prompts], device=self.model.device)
        mask = torch.arange(width, device=padded.device) >= starts if starts.any() else None  # [prompts, width]
        positions = (torch.arange(width, device=padded.device) - starts).clamp(min=0)
        options = self._options(mask, positions)
        output = self.model.backbone(input_ids=padded, use_cache=True, **options, **self._own_cache())
        self.cache = getattr(output, self.cache_name, None)
        if self.cache is None:
            raise ModelError(f"{self.model.name} keeps no cache that sampling could extend")
        if self.attention is not None:
            self.cache.batch_repeat_interleave(repeats)
        elif repeats > 1:
            # Every kind of cache layer can be reordered, also those that hold a state and no keys.
            owners = torch.arange(len(prompts), device=padded.device).repeat_interleave(repeats)
            self.cache.reorder_cache(owners)
        self.mask = None if mask is None else mask.repeat_interleave(repeats, 0)
        self.positions, self.longest = (width - 1 - starts).repeat_interleave(repeats, 0), width - 1
        return output.last_hidden_state[:, -1].repeat_interleave(repeats, 0)

    def _whole_rows(self) -> Tensor:
        """The last hidden states [rows, d] of rows that are read as a whole."""
        rows = [np.asarray(row[: self.model.max_length], dtype=np.int64) for row in self.rows]  # more have ended
        last = torch.tensor(np.cumsum([len(row) for row in rows]) - 1)
        return hidden_states(self.model, rows, "padded" if verdict(self.model, "padded") else "single", last)

    def _own_cache(self) -> dict[str, Any]:
        return {} if self.cache is None else {self.cache_name: self.cache}

    def _options(self, mask: Tensor | None, positions: Tensor) -> dict[str, Tensor]:
        options = {"position_ids": positions} if self.takes_positions else {}
        return options if mask is None else options | {"attention_mask": mask.long()}
