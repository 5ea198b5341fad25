"""Ranks that share each matrix give the losses, gradients, steps, samples and checkpoints of one process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lossbook.trainer.ranks import ALONE, Ranks

from ..ranks.calls import Call, Result, budget_of, call_of, differences, loss_of, outputs_by_index, taken_gradients
from ..ranks.processes import RankProcesses
from .tensor_models import ARCHITECTURES, trainer_of

#: One of each kind that the engine treats differently.
CALLS = [
    call_of(name, count=8, cuts=4) for name in ("cross_entropy", "dpo", "kto", "info_nce", "value_mse", "entropy_bonus")
]


#: Of products of other shapes, which are rounded differently; a mistake is larger in both.
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-12}


def run_calls(
    ranks: Ranks, architecture: str, width: int, dtype: torch.dtype, calls: list[Call], settings: dict[str, Any]
) -> list[Result]:
    engine, results = trainer_of(ranks, architecture, width, dtype, **settings).engine, []
    for call in calls:
        if call.cuts is not None:
            budget = budget_of(call, call.cuts, padded=engine.settings.batching == "padded")
            engine.settings = replace(engine.settings, tokens_per_micro_batch=budget)
        output = engine.forward_backward(call.data, loss_of(call.loss), call.pooling)
        results.append(Result(output.metrics, outputs_by_index(output.loss_fn_outputs), taken_gradients(engine.model)))
    return results


def check(
    ranks: RankProcesses,
    architecture: str,
    calls: list[Call],
    size: int = 2,
    width: int = 2,
    dtype: torch.dtype = torch.float64,
    **settings: Any,
) -> None:
    """Loss, metrics, outputs and gradients of each call are those of one process; mates have the same."""
    alone = run_calls(ALONE, architecture, 1, dtype, calls, settings)
    several = ranks.run(run_calls, architecture, width, dtype, calls, settings, size=size)
    for k, expected in enumerate(alone):
        for mate in range(width):
            one = differences([own[k] for own in several[mate::width]], expected)
            name = calls[k].loss[0][1]
            assert max(vars(one).values()) <= TOLERANCES[dtype], f"{architecture}, {name}: {one}"


@pytest.mark.parametrize("architecture", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_gradients_of_split_layers_are_those_of_one_process(ranks: RankProcesses, architecture: str) -> None:
    check(ranks, architecture, CALLS, batching="packed")
    check(ranks, architecture, CALLS[:1], batching="padded")
    check(ranks, architecture, CALLS[:1], dtype=torch.float32)


def test_a_batch_whose_graphs_do_not_fit_is_run_twice_by_all_mates(ranks: RankProcesses) -> None:
    (call,) = [call for call in CALLS if call.loss[0][1] == "info_nce"]
    check(ranks, "llama", [call], kept_graph_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["checkpoint_layers", "offload_activations"])
def test_layers_that_save_memory_are_split_too(ranks: RankProcesses, setting: str) -> None:
    check(ranks, "qwen3", CALLS[:2], **{setting: True})


@pytest.mark.slow
def test_bfloat16_products_of_mates_are_rounded_once_more(ranks: RankProcesses) -> None:
    alone, *several = (
        ran[0]
        for ran in (
            run_calls(ALONE, "llama", 1, torch.bfloat16, CALLS[:1], {}),
            *ranks.run(run_calls, "llama", 2, torch.bfloat16, CALLS[:1], {}),
        )
    )
    one = differences(several[:1], alone)
    assert one.loss < 1e-2
    assert one.gradients < 0.05
    assert several[0].metrics == several[1].metrics


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_every_architecture_that_is_split(ranks: RankProcesses, architecture: str) -> None:
    check(ranks, architecture, CALLS, batching="packed")
    check(ranks, architecture, CALLS[:1], batching="padded")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama with biases", "qwen3"])
def test_gradients_on_two_places_of_two_mates_each(ranks: RankProcesses, architecture: str) -> None:
    for batching in ("packed", "padded"):
        check(ranks, architecture, CALLS, size=4, batching=batching)
