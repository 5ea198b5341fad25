"""Datums and model outputs as the tensors that a training loop has: padded or packed, with NaN wherever nothing counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum
from lossbook.losses.batch.positions import positions_of, target_shape, width_of

NAN = float("nan")


@dataclass
class AsTensors:
    """What `loss.on_tensors` takes for some datums. outputs: leaves with gradients; data: the rest, by name."""

    outputs: dict[str, Tensor]
    data: dict[str, Any]
    lengths: list[int]
    columns: list[tuple[int, ...]]

    def rows(self, name: str, values: Tensor) -> list[Tensor]:
        """One tensor per datum of a tensor that is laid out as output `name` is."""
        if name == "embeddings":
            return list(values)
        if "cu_seqlens" in self.data:
            rows = list(values.split(self.lengths))
        else:
            rows = [row[:length] for row, length in zip(values, self.lengths, strict=True)]
        if name == "logprobs" and values.ndim == (2 if "cu_seqlens" in self.data else 3):
            rows = [row[:, : width[0]] for row, width in zip(rows, self.columns, strict=True)]
        return rows


def as_tensors(loss: Any, data: Sequence[Datum], outputs: Mapping[str, Sequence[Tensor]], *, packed: bool) -> AsTensors:
    """These datums padded to one more position than the longest has, or packed."""
    specs = [part.spec for _, part in loss.parts]
    lengths = [positions_of(datum) for datum in data]
    reads_tokens = any(spec.reads_tokens for spec in specs)
    marks = {spec.candidates for spec in specs}
    width = width_of(data)

    def joined(rows: Sequence[Tensor], fill: float) -> Tensor:
        if width is not None and rows[0].ndim == 2:
            rows = [torch.nn.functional.pad(row, (0, width - row.shape[1]), value=fill) for row in rows]
        if packed:
            return torch.cat(list(rows))
        wide = torch.full((len(rows), max(lengths) + 1, *rows[0].shape[1:]), fill, dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            wide[i, : len(row)] = row
        return wide

    given: dict[str, Any] = {}
    keys = dict.fromkeys(part.weights for _, part in loss.parts if part.weights is not None)
    own = {key: [weights_of(datum, key, is_per_position=bool(marks - {None})) for datum in data] for key in keys}
    # what counts for any part is read
    weights = [torch.stack([row.abs() for row in rows]).sum(0) for rows in zip(*own.values(), strict=True)]
    given |= {"mask" if key == "weights" else key: joined(rows, 0.0) for key, rows in own.items()}
    if reads_tokens and packed:
        given["cu_seqlens"] = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    for one in {one.name: one for spec in specs for one in spec.inputs}.values():
        if one.name not in data[0].loss_fn_inputs:
            continue
        rows = [datum.loss_fn_inputs[one.name].to_torch() for datum in data]
        if one.per == "datum":
            given[one.name] = torch.stack([row if one.is_vector else row.reshape(()) for row in rows])
        else:
            rows = [hidden(row.double(), weight) for row, weight in zip(rows, weights, strict=True)]
            given[one.name] = joined(rows, -torch.inf if one.name in marks else NAN)
    leaves = {
        name: torch.stack(list(rows))
        if name == "embeddings"
        else joined([hidden(row, weight) for row, weight in zip(rows, weights, strict=True)], NAN)
        for name, rows in outputs.items()
    }
    if "topk_tokens" in leaves:
        leaves["topk_tokens"] = leaves["topk_tokens"].nan_to_num(-7).long()  # ids are integers
    leaves = {name: leaf.detach().requires_grad_(leaf.is_floating_point()) for name, leaf in leaves.items()}
    return AsTensors(leaves, given, lengths, [target_shape(datum)[1:] for datum in data])


def weights_of(datum: Datum, key: str = "weights", *, is_per_position: bool) -> Tensor:
    """A datum's weights in the shape of its targets, or one per position; ones where it has none."""
    shape = target_shape(datum)
    given = datum.loss_fn_inputs.get(key)
    shape = shape[:1] if is_per_position else shape
    return torch.ones(shape) if given is None else given.to_torch().reshape(shape)


def hidden(values: Tensor, weights: Tensor) -> Tensor:
    """The values with NaN where the weight is 0."""
    counts = weights != 0
    if counts.ndim > values.ndim:
        counts = counts.any(1)
    return torch.where(counts if counts.ndim == values.ndim else counts.unsqueeze(1), values.double(), NAN)
