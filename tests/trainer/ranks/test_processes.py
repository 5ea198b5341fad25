"""The ranks that tests run on: what they return and raise comes back, and none hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from lossbook.datums.errors import ModelError
from lossbook.trainer.ranks import Ranks

from .processes import RankProcesses


def rank_and_sum(ranks: Ranks, number: float) -> tuple[int, float]:
    tensor = torch.tensor([number * (ranks.rank + 1)])
    ranks.add_up([tensor])
    return ranks.rank, float(tensor)


def refuse_on_the_last(ranks: Ranks) -> None:
    if ranks.rank == ranks.size - 1:
        raise ModelError("this rank refuses")


def never_answer(ranks: Ranks) -> None:
    if ranks.rank == 1:
        time.sleep(1000)


def kill_itself(ranks: Ranks) -> None:
    if ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_by_rank_also_after_one_raised(ranks: RankProcesses) -> None:
    assert ranks.run(rank_and_sum, 2.0) == [(0, 6.0), (1, 6.0)]
    with pytest.raises(ModelError, match="this rank refuses") as raised:
        ranks.run(refuse_on_the_last)
    assert "raised by rank 1 of 2" in raised.value.__notes__[0]
    assert ranks.run(rank_and_sum, 1.0) == [(0, 3.0), (1, 3.0)]
    assert ranks.run(rank_and_sum, 1.0, size=1) == [(0, 1.0)]


@pytest.mark.slow
def test_a_rank_that_dies_or_hangs_ends_the_call_with_its_reason() -> None:
    processes = RankProcesses()
    with pytest.raises(RuntimeError, match="rank 0 ended with exit code -9"):
        processes.run(kill_itself)
    assert processes.run(rank_and_sum, 1.0) == [(0, 3.0), (1, 3.0)]
    processes.timeout = processes.grace = 2.0
    with pytest.raises(TimeoutError, match="in never_answer"):
        processes.run(never_answer)
    processes.close()
