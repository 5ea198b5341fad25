"""Which datums make up which batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook.run.batches import Batches, seed_of
from lossbook.datums.errors import EmptyLossError

sizes = st.integers(1, 40)


@given(datums=sizes, batch_size=sizes, seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_epoch_holds_every_datum_once(datums: int, batch_size: int, seed: int, epoch: int) -> None:
    batches = Batches(datums, batch_size, seed)
    first = epoch * batches.per_epoch + 1
    seen = [i for step in range(first, first + batches.per_epoch) for i in batches.at(step)]
    assert sorted(seen) == list(range(datums))


@given(datums=sizes, batch_size=sizes, steps=st.lists(st.integers(1, 200), max_size=8))
def test_a_step_has_the_same_batch_whatever_was_asked_before(datums: int, batch_size: int, steps: list[int]) -> None:
    used = Batches(datums, batch_size, seed=3)
    for step in steps:
        assert used.at(step) == Batches(datums, batch_size, seed=3).at(step)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    batches = Batches(20, 20, seed=0)
    assert batches.at(1) != batches.at(2)
    assert batches.at(1) != Batches(20, 20, seed=1).at(1)


def test_every_seed_that_a_run_takes_gives_batches() -> None:
    assert sorted(Batches(5, 5, seed=2**64 - 1).at(1)) == list(range(5))
    assert seed_of(7, 3) == 7_000_024  # seed * 1,000,003 + number, as runs of earlier versions had


def test_no_datums_make_no_batch() -> None:
    with pytest.raises(EmptyLossError, match="0 datums and a batch size of 8 give no batch"):
        Batches(0, 8, seed=0)
