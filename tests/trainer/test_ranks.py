"""What a single process may rely on, and how an error of one process looks in another."""

from __future__ import annotations

import pytest
import torch

from lossbook.datums.errors import NonFiniteLossError, WorkerError
from lossbook.trainer.ranks import ALONE, described, raised_again


def test_alone_every_collective_is_the_identity() -> None:
    tensor = torch.tensor([1.0, 2.0])
    ALONE.add_up([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert ALONE.gather({"a": 1}) == [{"a": 1}]
    assert ALONE.sum([0.1, 2.0]) == [0.1, 2.0]
    assert ALONE.max([0.1, 2.0]) == [0.1, 2.0]
    with pytest.raises(ValueError, match="its own"), ALONE.agree():
        raise ValueError("its own")


@pytest.mark.parametrize("error", [NonFiniteLossError("datum 3: nan"), ValueError("of Python"), KeyError("x")])
def test_an_error_keeps_its_class_in_another_process(error: Exception) -> None:
    again = raised_again(*described(error))
    assert type(again) is type(error)
    assert str(error) in str(again)


def test_an_error_of_a_class_that_is_not_at_hand_is_a_worker_error() -> None:
    class TheirsError(Exception):
        pass

    again = raised_again(*described(TheirsError("what happened")))
    assert type(again) is WorkerError
    assert str(again) == "TheirsError: what happened"
    assert type(raised_again("UnicodeDecodeError", "text")) is WorkerError
