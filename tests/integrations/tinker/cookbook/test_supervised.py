"""sl_loop and supervised/train.py of tinker-cookbook, unmodified: losses fall, runs resume, rolling saves leave nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .loops import Loops


@pytest.fixture
def sl_loop(loops: Loops) -> Loops:
    loops.sl_loop("sl_loop")
    return loops


@pytest.mark.slow
def test_sl_loop_runs_by_its_own_command_line_and_its_loss_falls(sl_loop: Loops) -> None:
    losses = sl_loop.numbers("sl_loop", "train_mean_nll")
    assert list(losses) == list(range(6))
    assert losses[5] < losses[0] - 3.0


@pytest.mark.slow
def test_sl_loop_resumed_from_a_checkpoint_logs_the_numbers_of_the_run_that_was_not_interrupted(sl_loop: Loops) -> None:
    saved = sl_loop.rows("sl_loop", "checkpoints.jsonl")
    assert [row["name"] for row in saved] == ["000002", "000004", "final"]
    interrupted = sl_loop.folder / "runs" / "resumed"  # as a kill in the third step would have left the run
    interrupted.mkdir(parents=True, exist_ok=True)
    (interrupted / "checkpoints.jsonl").write_text(json.dumps(saved[0]) + "\n", encoding="utf-8")
    sl_loop.sl_loop("resumed")

    whole, resumed = (sl_loop.numbers(run, "train_mean_nll") for run in ("sl_loop", "resumed"))
    assert resumed == {step: whole[step] for step in (2, 3, 4, 5)}


@pytest.fixture
def supervised(loops: Loops) -> Loops:
    loops.script("supervised")
    return loops


@pytest.mark.slow
def test_supervised_train_lowers_the_loss_on_its_rows_and_on_held_out_ones(supervised: Loops) -> None:
    first, last = supervised.first_and_last("rolling", "train_mean_nll")
    assert last < first - 2.0

    first, last = supervised.first_and_last("whole", "test/nll")
    assert last < 0.7 * first
    assert list(supervised.numbers("whole", "test/nll")) == [0, 2, 4, 6]


@pytest.mark.slow
def test_supervised_train_resumed_for_a_second_epoch_logs_the_numbers_of_two_epochs_at_once(supervised: Loops) -> None:
    for metric in ("train_mean_nll", "test/nll", "num_tokens"):
        assert supervised.numbers("halves", metric) == supervised.numbers("whole", metric)
    assert list(supervised.numbers("halves", "train_mean_nll")) == list(range(8))


@pytest.mark.slow
def test_rolling_saves_delete_the_one_before_and_the_last_one_at_the_end(supervised: Loops) -> None:
    checkpoints = supervised.rows("rolling", "checkpoints.jsonl")
    assert [row.get("rolling", False) for row in checkpoints] == [True, True, True, False]

    left: dict[str, Any] = json.loads((supervised.folder / "runs" / "left.json").read_text(encoding="utf-8"))
    assert left["listed"] == sorted([checkpoints[-1]["sampler_path"], checkpoints[-1]["state_path"]])
    assert sorted(left["refused"]) == sorted(row["state_path"] for row in checkpoints[:-1])


@pytest.mark.slow
def test_a_saved_sampler_has_the_weights_of_the_state_that_was_saved_beside_it(supervised: Loops) -> None:
    left: dict[str, Any] = json.loads((supervised.folder / "runs" / "left.json").read_text(encoding="utf-8"))
    assert left["sampler"]["test/nll"] == pytest.approx(supervised.numbers("whole", "test/nll")[0], abs=1e-5)
