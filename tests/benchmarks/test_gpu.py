"""The script of GPU figures: what it runs, what it leaves out, and how it judges."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def gpu() -> ModuleType:
    return importlib.import_module("gpu")


def options(tmp_path: Path, **given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"quick": False, "device": "cuda", "out": tmp_path, "only": None, **given})


def test_an_aim_of_steps_compares_with_the_fastest_of_the_peers(gpu: ModuleType):
    ratios = {
        "ours": 1.0,
        "hand-written": 1.6,
        "hand-written, narrow weights": 0.5,
        "TRL tuned, padded": 2.0,
        "TRL b": 1.25,
    }
    rows = [{"way": way, "time / ours": ratio} for way, ratio in ratios.items()]
    part = next(part for part in gpu.PARTS if part.name == "sft-67m")
    judged = {
        row["aim"]: (row["measured"], row["holds"]) for row in (gpu.verdict(part, aim, rows) for aim in part.aims)
    }
    assert judged == {
        "ours / hand-written <= 0.8": (pytest.approx(0.625), "yes"),
        "ours / TRL tuned <= 0.8": (pytest.approx(0.8), "yes"),
    }
    slower = [{"way": "hand-written", "time / ours": 1.2}]
    assert [gpu.verdict(part, aim, slower)["holds"] for aim in part.aims] == ["no", "not measured"]


def test_the_head_is_judged_at_its_least_favourable_size(gpu: ModuleType):
    times = {2048: {"ours, keep": 5.0, "ours, recompute": 6.0, "Liger": 4.0, "torch cross_entropy": 1.0}}
    times[8192] = {"ours, keep": 10.0, "Liger": 20.0, "cut-cross-entropy": 10.0}
    rows = [{"positions": size, "way": way, "ms": ms} for size, each in times.items() for way, ms in each.items()]
    assert gpu.beside_heads(rows) == pytest.approx(1.25)


def test_ways_of_packages_that_are_missing_are_left_out(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    present = {"trl"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: object() if package in present else None)
    head = next(part for part in gpu.PARTS if part.name == "head")
    words = gpu.arguments(head, None, options(tmp_path))
    assert "ours, keep" in words
    assert not {"Liger", "cut-cross-entropy"} & set(words)
    present.add("datasets")
    sft = next(part for part in gpu.PARTS if part.name == "sft-67m")
    assert "TRL tuned, padded" in gpu.arguments(sft, "folder", options(tmp_path))
    present.remove("trl")
    assert "TRL tuned, padded" not in gpu.arguments(sft, "folder", options(tmp_path))


def test_a_part_that_fails_is_named_and_the_others_run(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(arguments: list[str]) -> list[dict[str, Any]]:
        raise torch.OutOfMemoryError("all of it")

    aim = gpu.Aim("enough", lambda rows: rows[0]["x"], at_least=1.0)
    parts = (gpu.Part("first", fails, ()), gpu.Part("second", lambda arguments: [{"x": 2.0}], (), None, (aim,)))
    monkeypatch.setattr(gpu, "PARTS", parts)
    gpu.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    first, second = json.loads((tmp_path / "gpu.json").read_text())["results"]
    assert first["holds"] == "failed: OutOfMemoryError: all of it"
    assert second == {"part": "second", "aim": "enough", "measured": 2.0, "holds": "yes"}


def test_a_part_that_would_not_end_in_time_is_left_out(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gpu, "PARTS", (gpu.Part("long", lambda arguments: [], (), seconds=60.0),))
    assert gpu.main(["--device", "cuda", "--seconds", "50", "--out", str(tmp_path)])[0]["holds"] == "left out: no time"


def test_without_a_gpu_nothing_is_measured(gpu: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert gpu.main(["--device", "cpu"]) == []
    assert "no GPU here" in capsys.readouterr().out


def test_other_sequences_come_in_each_step_and_the_same_to_every_way(gpu: ModuleType):
    steps, steps_dpo = importlib.import_module("steps"), importlib.import_module("steps_dpo")
    fresh = argparse.Namespace(fresh=True, rounds=3)
    batches = steps.batches_of(lambda seed: steps_dpo.make_pairs(4, 500, seed), fresh)
    assert len(batches) == 6
    assert len({tuple(pair.longest for pair in pairs) for pairs in batches}) == 6
    assert (
        batches[0]
        == steps.batches_of(lambda seed: steps_dpo.make_pairs(4, 500, seed), argparse.Namespace(fresh=False, rounds=3))[
            0
        ]
    )
