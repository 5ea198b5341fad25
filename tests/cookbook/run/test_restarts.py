"""A recipe goes on after a worker died: as often as it was asked to, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lossbook.cookbook.run.interrupts import restarted
from lossbook.cookbook.settings.base import RecipeConfig
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import RunError, WorkerDiedError


def config(**settings: object) -> RecipeConfig:
    return RecipeConfig(workers=2, **settings)  # type: ignore[arg-type]


def test_a_recipe_resumes_as_often_as_it_was_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[RecipeConfig] = []

    @restarted
    def main(settings: RecipeConfig) -> int:
        calls.append(settings)
        if len(calls) < 3:
            raise WorkerDiedError(f"worker {len(calls)} died")
        return 7

    assert main(config(restarts=2, overwrite=True)) == 7
    assert [(one.resume, one.overwrite) for one in calls] == [(False, True), (True, False), (True, False)]
    shown = capsys.readouterr().err
    assert "worker 1 died\nrestarting; 1 restarts are left" in shown
    assert "worker 2 died\nrestarting; 0 restarts are left" in shown


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_the_last_death_is_raised(restarts: int) -> None:
    calls = 0

    @restarted
    def main(settings: RecipeConfig) -> None:
        nonlocal calls
        calls += 1
        raise WorkerDiedError("died")

    with pytest.raises(WorkerDiedError):
        main(config(restarts=restarts))
    assert calls == restarts + 1


def test_other_errors_are_not_tried_again() -> None:
    calls = 0

    @restarted
    def main(settings: RecipeConfig) -> None:
        nonlocal calls
        calls += 1
        raise RunError("the folder is gone")

    with pytest.raises(RunError):
        main(config(restarts=3))
    assert calls == 1


def test_restarts_without_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="give --workers too"):
        SFTConfig(data=tmp_path / "rows.jsonl", restarts=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"all_weights": True}, "give --workers, a multiple of it"),
        ({"all_weights": True, "workers": 3}, "give --workers, a multiple of it"),
        ({"workers": 2}, "give --all-weights too"),
    ],
    ids=str,
)
def test_matrices_are_shared_by_workers_that_train_all_weights(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match=words):
        SFTConfig(data=tmp_path / "rows.jsonl", tensor_parallel=2, **settings)
