"""`train rl` on workers is the run of one process: they train, and they sample, or others sample while they train."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import rl
from lossbook.cookbook.rl import RLConfig
from lossbook.cookbook.run.runs import read_metrics, read_rows

pytest.importorskip("ray")

#: Numbers that say how long something took, or how a step was cut, and so depend on how many workers there are.
OF_THE_RUN = ("tokens_per_second", "sampling_seconds", "micro_batches", "forward_passes")


def even(answer: str, row: Mapping[str, Any]) -> float:
    """The share of characters with an even code: something that the tiny model does by chance and can learn."""
    return sum(ord(character) % 2 == 0 for character in answer) / max(len(answer), 1)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "rewards_of_a_test", sys.modules[__name__])

    def make(out: str, **changes: Any) -> RLConfig:
        settings: dict[str, Any] = {"task": "gcd", "reward": "rewards_of_a_test:even", "task_size": 8, "held_out": 2}
        settings |= {"steps": 2, "problems_per_step": 3, "group_size": 4, "max_tokens": 5, "learning_rate": 3e-3}
        return RLConfig.model_validate({"out": tmp_path / out, "device": "cpu", **settings, **changes})

    return make


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in OF_THE_RUN} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """The same answers, and numbers within 1e-4 or a thousandth: sums are taken in another order."""
    answers = [[(r["step"], r["kind"], r["answer"]) for r in read_rows(f / "samples.jsonl")] for f in (one, other)]
    assert answers[0] == answers[1]
    for left, right in zip(metrics(one), metrics(other), strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        pytest.param({"rank": 4}, {"workers": 2}, id="two workers train adapters and sample"),
        pytest.param(
            {"all_weights": True, "off_policy_steps": 1},
            {"workers": 2, "sampling_workers": 1},
            id="two workers train all weights, while another one samples",
        ),
    ],
)
def test_a_run_on_workers_is_the_run_of_one_process(
    settings: dict[str, Any], workers: dict[str, Any], make: Any
) -> None:
    here, there = make("here", **settings), make("there", **settings, **workers)
    rl.main(here)
    rl.main(there)
    assert_same_run(here.out, there.out)
    assert all(row["grad_norm"] > 0 for row in metrics(there.out) if "reward" in row)
