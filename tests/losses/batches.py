"""A batch of datums, and the model's outputs for it, that any registered loss can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossbook import Datum
from lossbook.losses.loss.loss import Loss
from lossbook.losses.spec.layers import LAYER_EMBEDDINGS
from lossbook.losses.spec.spec import Input
from lossbook.losses.spec.top import TOP_OUTPUTS
from lossbook.losses.spec.vocabulary import VOCABULARY_OUTPUTS

#: Inputs whose numbers have another meaning than their kind says.
SPECIAL: dict[str, Callable[[int], float]] = {
    "clip_low_threshold": lambda i: 0.75,
    "clip_high_threshold": lambda i: 1.25,
    "class_id": lambda i: i % 3,
    "document_id": lambda i: i % 3,
    "group": lambda i: i % 3,
    "label": lambda i: float(i % 4 < 2),
    "is_mismatched": lambda i: float(i % 3 == 2),
    "is_positive": lambda i: float(i % 8 < 4),
}
#: How many candidates a loss over candidates compares.
CANDIDATES = 3


@dataclass
class Batch:
    """Datums and the model's outputs for them: {"logprobs": [one float64 tensor per datum]}."""

    data: list[Datum]
    outputs: dict[str, list[Tensor]]


def batch_for(loss: Loss, count: int = 12, *, length: int = 3, columns: int | None = None, seed: int = 0) -> Batch:
    """`count` datums of up to `length` positions with all that any part of `loss` reads, optional inputs too.

    columns: targets are [N, columns]. Every type of float holds the numbers: multiples of 1/8, log-probabilities in
    [-6, -1], and embeddings of 8 bits.
    """
    generator = torch.Generator().manual_seed(seed)
    specs = [part.spec for _, part in loss.parts]
    columns = CANDIDATES if any(spec.candidates for spec in specs) else columns
    data: list[Datum] = []
    outputs: dict[str, list[Tensor]] = {name: [] for name in loss.outputs}
    for i in range(count):
        positions = 1 + i % length
        shape = (positions,) if columns is None else (positions, columns)
        weights = torch.ones(shape[:1] if any(spec.candidates for spec in specs) else shape)
        given: dict[str, Any] = {"target_tokens": torch.zeros(shape, dtype=torch.int64), "weights": weights}
        for one in {one.name: one for spec in specs for one in spec.inputs}.values():
            given[one.name] = _input(one, i, shape, generator)
        data.append(Datum(list(range(positions)), given))
        for name, rows in outputs.items():
            if name == "token_embeddings":
                rows.append(torch.randn(positions, 8, generator=generator).bfloat16().double())
                continue
            if name == "embeddings":  # of directions that no two share: equal angles would have a kink between them
                rows.append(torch.randn(8, generator=generator).bfloat16().double())
                continue
            if name == LAYER_EMBEDDINGS:
                layers = max(len(part.layers) for _, part in loss.parts)
                rows.append(torch.randn(layers, 8, generator=generator).bfloat16().double())
                continue
            if name in TOP_OUTPUTS:
                count = max(part.top_k for _, part in loss.parts)
                falling = _logprobs((positions, count), generator).cumsum(1)
                rows.append(falling if name == "topk_logprobs" else torch.arange(count).repeat(positions, 1))
                continue
            if name in VOCABULARY_OUTPUTS:
                rows.append(_logprobs((positions, CANDIDATES), generator))
                continue
            values = _logprobs(shape if name == "logprobs" else (positions,), generator)
            rows.append(values + 4 if name in ("entropy", "values") else values)
    return Batch(data, outputs)


def _logprobs(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return -torch.randint(8, 49, shape, generator=generator).double() / 8


def _input(one: Input, index: int, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    if one.is_vector:
        return torch.randn(8, generator=generator).bfloat16().float()
    if one.per == "datum":
        return SPECIAL.get(one.name, lambda i: 0.25 * (i % 5))(index)
    if one.name in SPECIAL:
        return torch.full(shape, SPECIAL[one.name](index))
    if one.kind == "flag":
        return torch.ones(shape)
    values = _logprobs(shape, generator)
    return values if one.kind == "logprob" else values + 3.5
