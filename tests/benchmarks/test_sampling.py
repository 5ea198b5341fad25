"""Sampling is compared with `generate` only where both give the same greedy tokens."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def sampling() -> ModuleType:
    return importlib.import_module("sampling")


def test_the_sampling_benchmark_writes_what_both_ways_reach(
    sampling: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--quick", "--model", "tiny", "--device", "cpu", "--rank", "2", "--out", str(tmp_path)]
    rows = sampling.main(quick)
    assert [row["weights"] for row in rows] == ["all", "LoRA, rank 2"]
    assert all(row["lossbook tokens/s"] > 0 and row["generate tokens/s"] > 0 for row in rows)
    assert "times as fast" in capsys.readouterr().out
    record = json.loads((tmp_path / "sampling.json").read_text())
    assert [row["times as fast"] for row in record["results"]] == [row["times as fast"].median for row in rows]


def test_the_sampling_benchmark_refuses_to_compare_ways_that_differ(
    sampling: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sampling.load("tiny", "cpu", 0)
    prompts = [[1, 2, 3], [4, 5, 6]]
    sampling.check_same_tokens(model, prompts, 2, 5, False)
    others = [[(token + 1) % 260 for token in row] for row in sampling.sample_ours(model, prompts, 2, 5, True)]
    monkeypatch.setattr(sampling, "sample_peer", lambda *_: others)
    with pytest.raises(AssertionError, match="parts from generate at token 0"):
        sampling.check_same_tokens(model, prompts, 2, 5, False)
