"""What is compared computes the same gradient, or is not compared."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

SMALL = ["--quick", "--device", "cpu"]


@pytest.fixture
def benchmark() -> ModuleType:
    return importlib.import_module("custom_versus_builtin")


@pytest.mark.slow
def test_a_two_pass_loss_with_masked_prompts_is_the_same_loss_too(benchmark: ModuleType, tmp_path: Path) -> None:
    rows = benchmark.main([*SMALL, "--label-fraction", "0.5", "--out", str(tmp_path)])
    assert [row["loss"] for row in rows] == ["cross_entropy", "grpo"]
    assert all(row["two passes ms"] > 0 for row in rows)


def test_ways_that_compute_something_else_are_not_compared(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(data, logprobs_list):
        return -2.0 * torch.cat(logprobs_list).sum(), {}

    monkeypatch.setitem(benchmark.LOSSES, "cross_entropy", twice)
    with pytest.raises(AssertionError, match="the ways do not compute the same gradient"):
        benchmark.main([*SMALL, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
