"""Routing matrices travel to workers, and every rank sends its own datums' tokens where they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import lossbook as lb
from lossbook.losses.registry import get_loss
from lossbook.trainer.ranks import Ranks

from ..ranks.calls import Numbers, Setup, engine_of, outputs_by_index, taken_gradients
from ..ranks.processes import RankProcesses
from ..workers.here import service_here
from .routed import datums_with, mixed_datums, routes_for


def pull(data: Any, logprobs: list[Tensor]) -> Any:
    return sum(one.sum() for one in logprobs), {}


@pytest.mark.parametrize(
    "loss", ["cross_entropy", pytest.param(pull, id="a function of the client's", marks=pytest.mark.slow)]
)
def test_a_model_on_a_worker_follows_them_as_one_here(
    mixture: Callable[[str], str], service: lb.ServiceClient, tmp_path: Path, loss: Any
) -> None:
    clients = [one.create_training_client(mixture("mixtral")) for one in (service, service_here(tmp_path))]
    datums = mixed_datums(2)
    for call in ("forward", "forward_backward"):
        here, there = (getattr(client, call)(datums, loss).result() for client in clients)
        assert here.loss_fn_outputs == there.loss_fn_outputs
    norms = [client.optim_step(lb.AdamParams(learning_rate=1e-2)).result().metrics["grad_norm"] for client in clients]
    assert norms[0] == norms[1]


def routed_call(
    ranks: Ranks, folder: str, checkpoint_layers: bool
) -> tuple[dict[int, Numbers], dict[int, Numbers], Numbers]:
    """Outputs of a forward and of a forward and backward, and whole gradients, of datums of which one rank has no routed one."""
    settings = {"tokens_per_micro_batch": 30, "checkpoint_layers": checkpoint_layers}
    engine = engine_of(ranks, Setup(base=folder, settings=settings))
    datums, loss = [*mixed_datums(2), *datums_with([7, 6])], get_loss("cross_entropy")
    seen = outputs_by_index(engine.forward(datums, loss).loss_fn_outputs)
    trained = outputs_by_index(engine.forward_backward(datums, loss).loss_fn_outputs)
    return seen, trained, taken_gradients(engine.model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "again", [pytest.param(False, id="once"), pytest.param(True, id="layers run again in the backward")]
)
def test_two_ranks_give_the_numbers_of_one(mixture: Callable[[str], str], ranks: RankProcesses, again: bool) -> None:
    alone = ranks.run(routed_call, mixture("mixtral"), False, size=1)[0]
    parts = ranks.run(routed_call, mixture("mixtral"), again, size=2)
    for k in (0, 1):
        together = parts[0][k] | parts[1][k]
        assert together.keys() == alone[k].keys()
        for i, own in together.items():
            np.testing.assert_allclose(own["logprobs"], alone[k][i]["logprobs"], atol=3e-6)
    for part in parts:
        for name, one in part[2].items():
            np.testing.assert_allclose(one, alone[2][name], atol=1e-5, err_msg=name)


def one_wrong(ranks: Ranks, folder: str) -> str:
    engine = engine_of(ranks, Setup(base=folder))
    datums = datums_with([*routes_for([5], 2), *(route[:, :1] for route in routes_for([5], 2))])
    with pytest.raises(lb.errors.ShapeError) as caught:
        engine.forward_backward(datums, get_loss("cross_entropy"))
    return str(caught.value)


@pytest.mark.slow
def test_a_wrong_matrix_is_named_by_every_rank(mixture: Callable[[str], str], ranks: RankProcesses) -> None:
    first, second = ranks.run(one_wrong, mixture("mixtral"), size=2)
    assert first == second
    assert "datum 1 of 2: routing_matrices[0] holds 2 bytes" in first
