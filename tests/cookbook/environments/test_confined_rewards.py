"""What a model writes cannot harm the run, whoever scores it: a task's verifier, math-verify, or a confined function."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lossbook.cookbook.environments import Problem, ProblemSettings, load_problems
from lossbook.datums.errors import DataFileError, RewardError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")

REWARDS = """
import os
seen = []
def evaluates(answer, row):
    return float(eval(answer, {"row": row}))
def counts_calls(answer, row):
    seen.append(answer)
    return len(seen)
def reads_the_environment(answer, row):
    return float(answer in os.environ)
def gives(answer, row):
    return {"nan": float("nan"), "none": None, "text": "1.0", "row": row["answer"]}[answer]
"""


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rows, and a module of reward functions beside them that can be imported."""
    (tmp_path / "rewards_to_confine.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rewards_to_confine", raising=False)
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{n}?", "answer": n, "many": [n, {"a": None}]}) + "\n" for n in (3, 4))
    )
    return path


def confined_problem(rows: Path, function: str, **settings: Any) -> Problem:
    values = {"data": str(rows), "held_out": 0, "reward": f"rewards_to_confine:{function}", "confine_rewards": True}
    (first, *_), _ = load_problems(ProblemSettings.model_validate(values | settings), 0)
    return first


def score(problem: Problem, answer: str) -> float:
    environment = problem.begin()
    environment.reset()
    return environment.step(answer).reward


def test_a_confined_function_gives_the_rewards_that_it_gives_unconfined(rows: Path) -> None:
    answers = ["1/3", " row['answer'] * 2 ", "len(row['many'])", "row['many'][1]['a'] is None"]
    confined = confined_problem(rows, "evaluates")
    free = confined_problem(rows, "evaluates", confine_rewards=False)
    assert [score(confined, text) for text in answers] == [score(free, text) for text in answers] == [1 / 3, 6, 2, 1]


def test_what_an_answer_does_in_a_confined_function_is_of_no_effect(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = confined_problem(rows, "evaluates", reward_seconds=2)
    before = sorted(os.listdir("."))
    with pytest.raises(
        RewardError, match=r"rewards_to_confine:evaluates failed on the question '3\?' .*: PermissionError"
    ):
        score(problem, "__import__('os').system('touch pwned')")
    assert sorted(os.listdir(".")) == before
    assert score(problem, "9**9**9**9") == 0
    assert score(problem, "__import__('os')._exit(0)") == 0
    assert score(problem, "1") == 1
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1
    assert "reward rewards_to_confine:evaluates failed on the answer '9**9**9**9': it took more than 2 seconds" in said


def test_a_confined_function_keeps_nothing_from_one_answer_to_the_next(rows: Path) -> None:
    problem = confined_problem(rows, "counts_calls")
    assert [score(problem, "a") for _ in range(3)] == [1, 1, 1]


def test_a_confined_function_knows_no_secrets(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert score(confined_problem(rows, "reads_the_environment", confine_rewards=False), "HF_TOKEN") == 1
    assert score(confined_problem(rows, "reads_the_environment"), "HF_TOKEN") == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "nan",
            r"rewards_to_confine:gives returned nan on the question '3\?' with the answer 'nan': it must be a finite",
        ),
        (
            "none",
            r"rewards_to_confine:gives failed on the question '3\?' with the answer 'none': TypeError: .*NoneType",
        ),
        ("text", r"rewards_to_confine:gives failed on the question .*: TypeError: it returned the text '1.0', not a"),
        ("else", r"rewards_to_confine:gives failed on the question .*: KeyError: 'else'"),
    ],
)
def test_a_mistake_in_a_confined_function_names_it_the_question_and_the_answer(
    rows: Path, answer: str, message: str
) -> None:
    problem = confined_problem(rows, "gives")
    with pytest.raises(RewardError, match=message):
        score(problem, answer)
    assert score(problem, "row") == 3


def test_a_row_that_json_does_not_hold_is_named(tmp_path: Path, rows: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = [{"prompt": "?", "answer": "1", "when": datetime.datetime(2020, 1, 1)}]
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "rows.parquet")
    with pytest.raises(DataFileError, match="'when' holds a datetime, which a confined reward cannot read"):
        confined_problem(tmp_path / "rows.parquet", "gives")


def test_a_task_hands_a_confined_function_its_row(rows: Path) -> None:
    settings = {"task": "gcd", "data": None, "task_size": 1}
    problem = confined_problem(rows, "evaluates", **settings)
    assert score(problem, "sorted(row) == ['answer', 'metadata', 'question']") == 1


def test_the_answers_that_once_ran_in_the_training_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (first, *_), _ = load_problems(ProblemSettings(task="countdown", task_size=1, held_out=0, reward_seconds=2), 0)
    assert score(first, "__import__('os').system('touch pwned')") == 0
    assert score(first, "9**9**9**9") == 0
    assert list(tmp_path.iterdir()) == []
    assert "failed on the answer '9**9**9**9': it took more than 2 seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "gcd", "confine_rewards": True}, "confine_rewards is for --reward module:function"),
        ({"data": "x", "reward": "math_verify", "confine_rewards": True}, "verifiers and math_verify always are"),
        ({"environment": "guess_number", "confine_rewards": True}, "environments cannot be"),
        ({"environment": "guess_number", "reward_seconds": 3}, "reward_seconds is for what runs in a confined process"),
        ({"data": "x", "reward": "a:b", "reward_seconds": 3}, "and with --confine-rewards --reward module:function"),
        ({"task": "gcd", "reward_seconds": 0}, "greater than 0"),
        ({"task": "gcd", "reward_seconds": float("inf")}, "finite number"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProblemSettings.model_validate(settings)
