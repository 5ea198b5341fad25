"""A loss on tensors under DistributedDataParallel: on two ranks the gradient, the loss and the metrics of the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import lossbook as lb
from lossbook.trainer.ranks import Ranks
from tests.losses.as_tensors import as_tensors
from tests.losses.batches import batch_for

from ..ranks.processes import RankProcesses

VOCABULARY, WIDTH = 11, 4
#: Rows of two micro-batches of each rank; the last holds no row that counts.
ROWS = [[[0, 1], [2, 3, 4, 5]], [[6, 7], [8, 9]]]
LOSSES: dict[str, Any] = {
    "token-mean": lambda: lb.get_loss("ppo", reduction="token-mean"),
    "mean over sequences": lambda: lb.get_loss("gspo"),
    "corrected": lambda: lb.get_loss("ppo+token_truncate", reduction="token-mean"),
    "mean over pairs": lambda: lb.get_loss("dpo"),
    "mixture": lambda: lb.get_loss("grpo") + 0.1 * lb.get_loss("entropy_bonus", reduction="seq-mean-token-mean"),
}

Answer = tuple[float, list[list[float]], dict[str, float]]


class Body(nn.Module):
    """A model whose forward gives hidden states; its head is used outside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features).tanh()


def tensors_of(loss: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Features and labels of ten rows, and what the loss reads beside them; rows 8 and 9 do not count."""
    batch = batch_for(loss, 10)
    data = as_tensors(loss, batch.data, batch.outputs, packed=False).data
    data["mask"][8:] = 0
    generator = torch.Generator().manual_seed(1)
    shape = data["mask"].shape
    features = torch.randn(*shape, WIDTH, dtype=torch.float64, generator=generator)
    return features, torch.randint(0, VOCABULARY, shape, generator=generator), data


def trained(ranks: Ranks, name: str) -> Answer:
    """The loss, the gradient and the metrics of one step, on this rank's micro-batches or, in one process, on all rows at once."""
    loss = LOSSES[name]()
    features, labels, data = tensors_of(loss)
    parts = [list(range(10))] if ranks.size == 1 else ROWS[ranks.rank]
    model = Body()
    wrapped = model if ranks.size == 1 else DistributedDataParallel(model)
    given = [{key: one[rows] for key, one in data.items()} for rows in parts]
    denominator: Any = sum(
        loss.count_tensors(labels=labels[rows], **own) for rows, own in zip(parts, given, strict=True)
    )
    if ranks.size > 1:
        distributed.all_reduce(denominator)
    total, metrics = torch.zeros((), dtype=torch.float64), []
    for rows, own in zip(parts, given, strict=True):
        value, its = loss.on_hidden(wrapped(features[rows]), model.head, labels[rows], denominator=denominator, **own)
        (value * ranks.size).backward()
        total += value.detach()
        metrics.append(its)
    merged = sum(metrics)
    if ranks.size > 1:
        distributed.all_reduce(total)
        merged = merged.all_reduce()
    gradients = [one.grad.flatten().tolist() for one in model.parameters() if one.grad is not None]
    return float(total), gradients, dict(merged)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_of_two_micro_batches_are_one_process_with_all_rows(name: str, ranks: RankProcesses) -> None:
    value, gradients, metrics = ranks.run(trained, name, size=1)[0]
    assert any(any(row) for row in gradients)
    for own_value, own_gradients, own_metrics in ranks.run(trained, name, size=2):
        assert own_value == pytest.approx(value, abs=1e-12)
        for row, expected in zip(own_gradients, gradients, strict=True):
            assert row == pytest.approx(expected, abs=1e-12)
        assert own_metrics == pytest.approx(metrics, abs=1e-12)
