"""Equal seeds give equal numbers from every generator, and runs that are the same bit for bit."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import ConfigError


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), 2**32 + 1, 2**64 - 1])
def test_one_seed_seeds_every_generator(seed: int) -> None:
    lb.seed_everything(seed)
    first = draw()
    draw()
    lb.seed_everything(seed)
    assert draw() == first
    lb.seed_everything(3)
    other = draw()
    assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", None, True])
def test_a_seed_that_is_none_is_refused_and_seeds_nothing(seed: object) -> None:
    lb.seed_everything(1)
    expected = draw()
    lb.seed_everything(1)
    with pytest.raises(ConfigError, match=r"a seed is a whole number from 0 to 2\*\*64 - 1, not"):
        lb.seed_everything(seed)  # type: ignore[arg-type]
    assert draw() == expected


def test_equal_seeds_give_equal_runs_also_with_dropout(model_with_dropout: str) -> None:
    def run(seed: int) -> list[dict[str, float]]:
        lb.seed_everything(seed)
        service = lb.ServiceClient(device="cpu", dropout=True, deterministic=True)
        client = service.create_lora_training_client(model_with_dropout, rank=2, seed=0)
        datum = lb.datum_from_tokens_weights([1, 2, 3, 4, 5], [0, 1, 1, 1, 1])
        metrics = []
        for _ in range(2):
            client.forward_backward([datum], "cross_entropy").result()
            metrics.append(client.optim_step(lb.AdamParams()).result().metrics)
        return metrics

    assert run(5) == run(5)
    assert run(5) != run(6)


def test_a_deterministic_service_on_the_cpu_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    lb.ServiceClient(device="cpu", deterministic=True)
    assert dict(os.environ) == before


def test_a_deterministic_service_refuses_what_has_no_deterministic_algorithm() -> None:
    def loss(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        torch.empty(3).fill_(torch.are_deterministic_algorithms_enabled())
        return -torch.cat(logprobs).put_(torch.tensor([0]), torch.tensor([0.0]), accumulate=False).sum(), {}

    client = lb.ServiceClient(device="cpu", deterministic=True).create_lora_training_client("tiny", rank=2, seed=0)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        client.forward_backward_custom([lb.datum_from_tokens_weights([1, 2, 3], [0, 1, 1])], loss).result()
