"""Which datums are in which batch. It depends on the seed and the step alone, so a resumed run sees the same batches."""

from __future__ import annotations

import torch

from ...datums.errors import EmptyLossError


def seed_of(seed: int, number: int) -> int:
    """A seed of its own for each of a run's epochs or steps, below 2**64 as torch takes it."""
    return (seed * 1_000_003 + number) % 2**64


class Batches:
    """Each datum once per epoch, in a new random order each epoch; an epoch's last batch may be smaller."""

    def __init__(self, datums: int, batch_size: int, seed: int) -> None:
        if datums < 1 or batch_size < 1:
            raise EmptyLossError(
                f"{datums} datums and a batch size of {batch_size} give no batch: both must be at least 1"
            )
        self.datums = datums
        self.batch_size = batch_size
        self.seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """Batches per epoch."""
        return -(-self.datums // self.batch_size)

    def at(self, step: int) -> list[int]:
        """The indices of the datums in the batch of a step; steps count from 1."""
        epoch, number = divmod(step - 1, self.per_epoch)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            self._order = (epoch, torch.randperm(self.datums, generator=generator).tolist())
        return self._order[1][number * self.batch_size :][: self.batch_size]
