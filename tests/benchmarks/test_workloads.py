"""Data, models, operations and slopes that the benchmarks' numbers rest on."""

from __future__ import annotations

import importlib
from statistics import median
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


@pytest.fixture
def workloads() -> ModuleType:
    return importlib.import_module("workloads")


@pytest.fixture
def steps() -> ModuleType:
    return importlib.import_module("steps")


def small(workloads: ModuleType) -> Any:
    return workloads.Shape("llama", 512, 32, 48, 2, 4, 2, 8).build()


def test_lengths_are_lognormal_within_their_bounds_and_the_same_each_time(workloads: ModuleType) -> None:
    lengths = workloads.lengths(1000)
    assert lengths == workloads.lengths(1000)
    assert min(lengths) >= 16
    assert max(lengths) <= 512
    assert 75 < median(lengths) < 85


def test_the_last_part_of_each_sequence_is_trained_on(workloads: ModuleType) -> None:
    batch = workloads.examples([40, 80], 0.25, 512)
    assert [(len(e.prompt), len(e.completion)) for e in batch] == [(30, 10), (60, 20)]
    labels = [sum(datum.loss_fn_inputs["weights"].data) for datum in workloads.datums(batch)]
    assert labels == [10, 20]


def test_a_pack_has_the_tokens_that_were_asked_for(workloads: ModuleType) -> None:
    gemm_peak = importlib.import_module("gemm_peak")
    assert sum(len(example.tokens) for example in gemm_peak.pack(2048, 512)) == 2048


def test_a_shape_gives_the_same_weights_each_time(workloads: ModuleType) -> None:
    first, second = (dict(small(workloads).named_parameters()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operations_of_a_step_are_those_that_torch_counts(workloads: ModuleType) -> None:
    # torch counts all keys of a query, and the benchmark the half that a causal model may see.
    gemm_peak = importlib.import_module("gemm_peak")
    model = small(workloads)
    model.set_attn_implementation("eager")
    batch = workloads.examples([24], 1.0, 512)
    tokens = torch.tensor([batch[0].tokens])
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, use_cache=False).logits[:, :-1].sum().backward()
    unseen = 6 * 2 * (4 * 8) * 24 * 24
    first_label = 6 * 512 * 32  # the first token is never a label, but torch counts its position in the head
    assert gemm_peak.operations(model, batch) + unseen + first_label == counter.get_total_flops()


def test_the_slope_of_a_power_law_is_its_exponent() -> None:
    growth = importlib.import_module("growth")
    rows = [{"size": n, "seconds": 3.0 * n**1.5} for n in (2, 4, 8, 16)]
    assert growth.slope(rows, "seconds") == pytest.approx(1.5)


@pytest.mark.slow
def test_a_step_with_another_loss_is_not_timed(steps: ModuleType) -> None:
    with pytest.raises(AssertionError, match="other does not compute the loss that lossbook computes"):
        steps.compare({"ours": lambda: 1.0, "other": lambda: 1.001}, 1, 1, {}, tolerance=1e-4)


@pytest.mark.slow
def test_a_step_whose_second_loss_parts_is_not_timed_either(steps: ModuleType) -> None:
    losses = iter([1.0, 1.1])
    with pytest.raises(AssertionError, match="other does not compute the loss that lossbook computes"):
        steps.compare({"ours": lambda: 1.0, "other": lambda: next(losses)}, 1, 1, {}, tolerance=1e-4)


def test_steps_are_closed_once_they_have_been_timed(steps: ModuleType) -> None:
    closed = []

    class Step:
        def __call__(self) -> float:
            return 1.0

        def close(self) -> None:
            closed.append(self)

    step = Step()
    rows = steps.compare({"ours": lambda: 1.0, "other": step}, 2, 10, {"model": "m"}, tolerance=1e-4)
    assert closed == [step]
    assert [(row["model"], row["way"], row["rounds"]) for row in rows] == [("m", "ours", 2), ("m", "other", 2)]
