"""A model on several ranks has the losses and gradients of one process."""

from __future__ import annotations

import pytest
from torch import Tensor

from lossbook.trainer.ranks import ALONE, Ranks

from ..ranks.processes import RankProcesses
from .models import TRAINED, accumulate, built, gradients, off, sharded


def pass_over(ranks: Ranks, trained: str) -> tuple[float, dict[str, Tensor]]:
    model = built(trained) if ranks.size == 1 else sharded(ranks, trained)
    return accumulate(model, ranks), gradients(model)


@pytest.mark.parametrize("trained", TRAINED)
def test_gradients_are_those_of_one_process(ranks: RankProcesses, trained: str) -> None:
    loss, expected = pass_over(ALONE, trained)
    for size in (2,):
        for other, ours in ranks.run(pass_over, trained, size=size):
            assert abs(other - loss) < 1e-6 * loss
            assert off(ours, expected) < 1e-6
