"""Which checkpoints stay, and early stopping: a run ends where its held-out metric turns, and stands for its best checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lossbook as lb
from lossbook.cookbook.loop import Loop, begin, finish, introduce
from lossbook.cookbook.run.configs import adam_params
from lossbook.cookbook.run.runs import find_checkpoint, open_run, read_metrics
from lossbook.cookbook.settings.base import DataConfig, RecipeConfig
from lossbook.cookbook.settings.embed import EmbedConfig
from lossbook.cookbook.settings.rl import RLConfig
from lossbook.cookbook.steps.checkpoints import keep_newest
from lossbook.datums import disk
from lossbook.datums.errors import ConfigError

DATUMS = [lb.datum_from_tokens_weights([1, 2, 3, 4], [0.0, 1.0, 1.0, 1.0])]


def config_in(folder: Path, **changes: Any) -> RecipeConfig:
    stopping = {"eval_every": 1, "early_stopping_patience": 2}
    return RecipeConfig(out=folder, rank=2, learning_rate=1e-2, **{**stopping, **changes})


def train(config: RecipeConfig, values: list[float], *, total: int = 9, killed_after: int | None = None) -> list[int]:
    """Steps on one datum, with these values of a held-out metric after each; returns the steps that were made."""
    run, training = begin(config)
    introduce(config, run, training, rows=1, steps=total)
    made = []
    with Loop(config, run, training, total) as loop:
        for step in loop:
            output = training.forward_backward(DATUMS, "cross_entropy").result()
            update = training.optim_step(adam_params(config, step, total)).result()
            loop.log(step, DATUMS, output, update)
            made.append(step)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, {"held_out_nll": values[step - 1], "held_out_score": 1.0 - step})
            if step == killed_after:
                run.release()
                return made
    finish(run, training)
    return made


def saved(config: RecipeConfig) -> list[str]:
    return sorted(path.name for path in (config.out / "checkpoints").iterdir())


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


VALUES = [3.0, 2.0, 2.5, 1.0, float("nan"), 1.0, 0.5, 0.4, 0.3]


def test_a_run_ends_after_so_many_evaluations_without_a_better_one_and_stands_for_its_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_in(tmp_path / "run", keep_checkpoints=1)
    assert train(config, VALUES) == [1, 2, 3, 4, 5, 6]  # an equal value is no better, nor is NaN
    assert json.loads((config.out / "best.json").read_text()) == {"metric": "held_out_nll", "value": 1.0, "step": 4}
    assert saved(config) == ["step-000004", "step-000006"]
    assert sorted(path.name for path in (config.out / "kept").iterdir()) == ["step-000004.json", "step-000006.json"]
    assert find_checkpoint(config.out).name == "step-000004"
    printed = capsys.readouterr()
    assert "stopped early after step 6: held_out_nll was best at step 4 (1), 2 evaluations ago" in printed.err
    assert f"best    {config.out / 'checkpoints' / 'step-000004'}" in printed.out
    four = RecipeConfig(out=tmp_path / "four", rank=2, learning_rate=1e-2)
    train(four, VALUES, total=4)
    assert weights(config.out) == weights(four.out)  # the adapter is that of the best step
    resumed = config.model_copy(update={"resume": True})
    assert train(resumed, VALUES) == []
    assert train(resumed.model_copy(update={"early_stopping_patience": 3}), VALUES) == [7, 8, 9]
    assert find_checkpoint(config.out).name == "step-000009"


def test_a_resumed_run_stops_where_it_would_have_stopped(tmp_path: Path) -> None:
    whole, killed = (config_in(tmp_path / name, save_every=3) for name in ("whole", "killed"))
    assert train(whole, VALUES) == [1, 2, 3, 4, 5, 6]
    assert train(killed, VALUES, killed_after=5) == [1, 2, 3, 4, 5]
    assert train(killed.model_copy(update={"resume": True}), VALUES) == [5, 6]
    names = ("loss", "grad_norm", "held_out_nll", "step")
    rows = [
        [{name: str(row[name]) for name in names if name in row} for row in read_metrics(one.out / "metrics.jsonl")]
        for one in (whole, killed)
    ]
    assert rows[0] == rows[1]
    assert (whole.out / "best.json").read_bytes() == (killed.out / "best.json").read_bytes()
    assert weights(whole.out) == weights(killed.out)


def test_another_metric_can_be_followed_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", early_stopping_metric="held_out_score", early_stopping_patience=1)
    assert train(config, VALUES) == [1, 2]  # it falls, and more is better
    with pytest.raises(
        ConfigError, match=r"the evaluations have no held_out_margin; they have held_out_nll, held_out_score\."
    ):
        train(config_in(tmp_path / "other", early_stopping_metric="held_out_margin"), VALUES)


def test_without_early_stopping_a_resumed_run_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run")
    train(config, VALUES)
    plain = config.model_copy(update={"resume": True, "early_stopping_patience": None})
    assert train(plain, VALUES, total=7) == [7]
    assert find_checkpoint(config.out).name == "step-000007"
    assert not (config.out / "best.json").exists()


def test_the_newest_checkpoints_stay_as_others_are_written(tmp_path: Path) -> None:
    config = RecipeConfig(out=tmp_path / "run", rank=2, save_every=1, keep_checkpoints=2)
    train(config, VALUES, total=5)
    assert saved(config) == ["step-000004", "step-000005"]
    assert train(config.model_copy(update={"resume": True, "keep_checkpoints": 1}), VALUES, total=6) == [6]
    assert saved(config) == ["step-000006"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_fails_while_a_checkpoint_is_deleted_leaves_the_others_whole_and_is_cleared_by_the_next_save(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(tmp_path / "run", {})
    for step in (1, 2, 3):
        (run.checkpoint(step)).mkdir(parents=True)
        (run.checkpoint(step) / "MANIFEST.json").write_text("{}")
    (run.checkpoints / "mine").mkdir()
    monkeypatch.setenv("LOSSBOOK_FAILPOINT", "enospc@1:rename")
    disk.hits.clear()
    if count < 3:
        with pytest.warns(RuntimeWarning, match=r"step-000001 could not be deleted: .*No space left"):
            keep_newest(run, count, best=None)
        assert sorted(path.name for path in run.checkpoints.iterdir())[0] == "mine"
        assert run.checkpoint(1).is_dir()
    monkeypatch.delenv("LOSSBOOK_FAILPOINT")
    keep_newest(run, count, best=1)
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["mine", "step-000001", *[f"step-{n:06}" for n in (2, 3)][-min(count, 2) :]]


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        (RecipeConfig, {"early_stopping_patience": 1}, "give --eval-every too"),
        (RecipeConfig, {"early_stopping_metric": "held_out_nll"}, "for --early-stopping-patience only"),
        (RecipeConfig, {"eval_every": 1, "early_stopping_patience": 1, "early_stopping_metric": "loss"}, "is one of"),
        (DataConfig, {"data": "a", "eval_every": 1, "early_stopping_patience": 1}, "nothing is held out"),
        (
            DataConfig,
            {"task": "a", "held_out": 0, "eval_every": 1, "early_stopping_patience": 1},
            "nothing is held out",
        ),
        (EmbedConfig, {"data": "a", "eval_every": 1, "early_stopping_patience": 1}, "nothing is held out"),
        (RLConfig, {"task": "a", "held_out": 0, "eval_every": 1, "early_stopping_patience": 1}, "nothing is held out"),
        (RecipeConfig, {"keep_checkpoints": 1}, "give --save-every too"),
        (RecipeConfig, {"save_every": 1, "keep_checkpoints": 0}, "keep_checkpoints"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(kind: type[RecipeConfig], flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**flags)
