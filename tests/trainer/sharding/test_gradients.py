"""A model on several ranks has the losses and gradients of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook.trainer.model.load import load_model
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.gradients import sum_gradients
from lossbook.trainer.sharding.shard import shard_model

from ..kinds import KINDS, model_of
from ..ranks.processes import RankProcesses
from .models import TRAINED, accumulate, built, gradients, off, sharded


def pass_over(ranks: Ranks, trained: str) -> tuple[float, dict[str, Tensor]]:
    model = built(trained) if ranks.size == 1 else sharded(ranks, trained)
    return accumulate(model, ranks), gradients(model)


def check(ranks: RankProcesses, trained: str, size: int) -> None:
    loss, expected = pass_over(ALONE, trained)
    for other, ours in ranks.run(pass_over, trained, size=size):
        assert abs(other - loss) < 1e-6 * loss
        assert off(ours, expected) < 1e-6


@pytest.mark.parametrize("trained", TRAINED)
def test_gradients_are_those_of_one_process(ranks: RankProcesses, trained: str) -> None:
    check(ranks, trained, 2)


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
def test_gradients_of_four_ranks_are_those_of_one_process(ranks: RankProcesses, trained: str) -> None:
    check(ranks, trained, 4)


def of_kind(ranks: Ranks, kind: str) -> dict[str, Tensor]:
    """Gradients of a model of some architecture, of which each rank reads other tokens."""
    model: Any = model_of(KINDS[kind]())
    model.train_all_weights()
    if ranks.size > 1:
        shard_model(model, ranks)
    for i in range(ranks.rank, 2, ranks.size):
        tokens = (torch.arange(12)[None] * (3 + 2 * i)) % 96

        def loss(tokens: Tensor = tokens) -> dict[str, Tensor]:
            hidden = model.backbone(tokens, use_cache=False).last_hidden_state
            return {"loss": (hidden @ model.head().weight.T).logsumexp(-1).sum() / 24}

        model.inside(loss)["loss"].backward()
    sum_gradients(model)
    return gradients(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_every_kind_of_model_are_those_of_one_process(ranks: RankProcesses, kind: str) -> None:
    expected = of_kind(ALONE, kind)
    largest = max(float(one.abs().max()) for one in expected.values())
    for ours in ranks.run(of_kind, kind):
        assert ours.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6 * largest)


def of_encoder(ranks: Ranks) -> dict[str, Tensor]:
    model = load_model("tiny-encoder", device="cpu", ranks=ranks).train_all_weights()
    shard_model(model, ranks)
    for i in range(ranks.rank, 2, ranks.size):
        tokens = (torch.arange(12)[None] * (3 + 2 * i)) % 96
        model.inside(lambda tokens=tokens: {"h": model.backbone(tokens).last_hidden_state.square().sum()})[
            "h"
        ].backward()
    sum_gradients(model)
    return gradients(model)


def test_gradients_of_an_encoder_are_those_of_one_process(ranks: RankProcesses) -> None:
    expected = of_encoder(ALONE)
    for ours in ranks.run(of_encoder):
        assert off(ours, expected) < 3e-6
