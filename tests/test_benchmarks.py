"""The benchmark runs, compares what computes the same gradient, and writes what it prints."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "custom_versus_builtin.py"
SMALL = ["--model", "tiny", "--device", "cpu", "--rounds", "2", "--datums", "2", "--length", "8"]


@pytest.fixture
def benchmark() -> dict[str, Any]:
    return runpy.run_path(str(BENCHMARK))


def test_the_benchmark_prints_a_table_and_writes_its_numbers(
    benchmark: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = benchmark["main"]([*SMALL, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert [result.loss for result in results] == ["cross_entropy", "grpo"]
    assert all(benchmark["row"](result) in printed for result in results)
    record = json.loads((tmp_path / "custom_versus_builtin.json").read_text())
    assert record["environment"]["torch"] == torch.__version__
    assert [result["custom_ratio"] for result in record["results"]] == [result.custom_ratio for result in results]
    with open(tmp_path / "custom_versus_builtin.csv", newline="") as file:
        assert [line["loss"] for line in csv.DictReader(file)] == ["cross_entropy", "grpo"]


def test_a_two_pass_loss_with_masked_prompts_is_the_same_loss_too(benchmark: dict[str, Any], tmp_path: Path) -> None:
    results = benchmark["main"]([*SMALL, "--label-fraction", "0.5", "--out", str(tmp_path)])
    assert all(result.two_passes_ms > 0 for result in results)


def test_ways_that_compute_something_else_are_not_compared(benchmark: dict[str, Any], tmp_path: Path) -> None:
    benchmark["LOSSES"]["cross_entropy"] = lambda data, logprobs_list: (-2.0 * torch.cat(logprobs_list).sum(), {})
    with pytest.raises(AssertionError, match="the ways do not compute the same gradient"):
        benchmark["main"]([*SMALL, "--out", str(tmp_path)])


def test_ratios_are_taken_within_a_round_so_that_a_slow_one_does_not_move_them(benchmark: dict[str, Any]) -> None:
    times = {"built-in": [2.0, 4.0, 2.0], "custom": [2.0, 4.4, 2.2], "two passes": [3.0, 6.0, 3.0]}
    result = benchmark["summarize"](times, model="m", loss="l", tokens=1, label_fraction=1.0, rounds=3)
    assert result.custom_ratio == pytest.approx(1.1)
    assert result.two_passes_ratio == pytest.approx(1.5)


SAMPLING = BENCHMARK.with_name("sampling.py")


@pytest.fixture
def sampling(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(SAMPLING.parent))  # where a script finds its neighbours
    return runpy.run_path(str(SAMPLING))


def test_the_sampling_benchmark_writes_what_both_ways_reach(
    sampling: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--quick", "--model", "tiny", "--device", "cpu", "--rank", "2", "--out", str(tmp_path)]
    rows = sampling["main"](quick)
    assert [row["weights"] for row in rows] == ["all", "LoRA, rank 2"]
    assert all(row["lossbook tokens/s"] > 0 and row["generate tokens/s"] > 0 for row in rows)
    assert "times as fast" in capsys.readouterr().out
    record = json.loads((tmp_path / "sampling.json").read_text())
    assert [row["times as fast"] for row in record["results"]] == [row["times as fast"].median for row in rows]


def test_the_sampling_benchmark_refuses_to_compare_ways_that_differ(
    sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sampling["load"]("tiny", "cpu", 0)
    prompts = [[1, 2, 3], [4, 5, 6]]
    sampling["check_same_tokens"](model, prompts, 2, 5, False)
    monkeypatch.setitem(
        sampling["check_same_tokens"].__globals__,
        "sample_peer",
        lambda *_: [[(t + 1) % 260 for t in row] for row in sampling["sample_ours"](model, prompts, 2, 5, True)],
    )
    with pytest.raises(AssertionError, match="parts from generate at token 0"):
        sampling["check_same_tokens"](model, prompts, 2, 5, False)
