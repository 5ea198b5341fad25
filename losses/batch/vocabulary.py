"""A model's whole distribution at many positions, made a tile of positions at a time: never all of [positions, vocabulary]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor


class Tile(Protocol):
    """Some positions of a `Distributions`."""

    @property
    def logprobs(self) -> Tensor:
        """[t, V] nats in float32 (float64 for float64), without a graph."""
        ...


class Sums(Protocol):
    """The gradients of what distributions are made of, added up tile by tile."""

    def add(self, tile: Tile, gradient: Tensor) -> None:
        """Add those of a tile. gradient: [t, V], d loss / d its logprobs; it may be overwritten."""
        ...

    def finished(self) -> tuple[Tensor | None, ...]:
        """One for each of `tensors`; None for one that needs none."""
        ...


class Distributions(Protocol):
    """log softmax over a vocabulary at some positions."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What they are made of: hidden states, or logits, first; then weight and bias of a head."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def tile_rows(self) -> int:
        """How many positions fit into a tile."""
        ...

    def __len__(self) -> int:
        """How many positions there are."""
        ...

    def __getitem__(self, rows: Tensor) -> Distributions:
        """Those at some positions, [n] int64."""
        ...

    def tile(self, part: slice) -> Tile:
        """log softmax at a few positions."""
        ...

    def sums(self) -> Any:
        """`Sums` of no tile yet."""
        ...

    def size(self) -> Tensor:
        """[positions]: the largest number of each of what they are made of: finite where the position can be used."""
        ...


def is_whole(values: Tensor | Distributions | None) -> bool:
    """Whether an output is there as `Distributions`, not as numbers."""
    return values is not None and not isinstance(values, Tensor)


def tiles(positions: int, rows: int) -> Iterator[slice]:
    """Slices of at most `rows` positions; one of none where there are none, so that metrics have their names."""
    for start in range(0, max(positions, 1), rows):
        yield slice(start, min(start + rows, positions))
