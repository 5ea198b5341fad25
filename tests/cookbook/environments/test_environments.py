"""Environments and rewards: what they give, and that a mistake in one names the function, the question and the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lossbook.cookbook.environments import Problem, ProblemSettings, load_problems
from lossbook.cookbook.environments.guess_number import GuessNumber
from lossbook.cookbook.environments.math_answers import MathReward
from lossbook.datums.errors import DataFileError, LossbookError, RewardError, TaskError


def fails(answer: str, row: Mapping[str, Any]) -> float:
    """A reward function with a mistake in it."""
    return 1.0 / len(answer.replace(answer, ""))


def nothing(answer: str, row: Mapping[str, Any]) -> Any:
    """A reward function that forgets to return."""


def not_a_number(answer: str, row: Mapping[str, Any]) -> float:
    """A reward that no mean survives."""
    return float("nan")


def of_one_argument(answer: str) -> float:
    """Not what the recipe calls."""
    return 1.0


def exact(answer: str, row: Mapping[str, Any]) -> float:
    """1 for the row's answer."""
    return float(answer == row["answer"])


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    """This module by a name that module:function can import."""
    import sys

    monkeypatch.setitem(sys.modules, "rewards_of_a_test", sys.modules[__name__])
    return "rewards_of_a_test"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four rows of prompt and answer."""
    path = tmp_path / "math.jsonl"
    values = [{"prompt": f"What is {n} / 4?", "answer": f"{n}/4"} for n in (1, 2, 3, 5)]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def score(problem: Problem, answer: str) -> float:
    environment = problem.begin()
    environment.reset()
    return environment.step(answer).reward


# --- one answer ------------------------------------------------------------------------------------------------------


def test_math_verify_takes_equal_numbers_in_another_form_and_no_others(rows: Path) -> None:
    (half, *_), _ = load_problems(ProblemSettings(data=str(rows), held_out=0), 0)
    answers = ["0.25", "It is $\\frac{1}{4}$.", "2/8", "0.26", "no idea", ""]
    assert [score(half, answer) for answer in answers] == [1, 1, 1, 0, 0, 0]


def test_the_last_rows_of_a_file_are_held_out_and_a_file_of_its_own_in_their_place(rows: Path) -> None:
    problems, held_out = load_problems(ProblemSettings(data=str(rows), held_out=1), 0)
    assert ([p.text for p in held_out], len(problems)) == (["What is 5 / 4?"], 3)
    problems, held_out = load_problems(ProblemSettings(data=str(rows), eval_data=str(rows)), 0)
    assert (len(problems), len(held_out)) == (4, 4)
    with pytest.raises(DataFileError, match="has 4 rows, and holding out 9 leaves none to train on"):
        load_problems(ProblemSettings(data=str(rows), held_out=9), 0)


def test_an_answer_that_would_be_worked_out_for_ever_earns_nothing_and_the_next_is_compared() -> None:
    reward = MathReward(seconds=2.0)
    row = {"answer": "1/2"}
    assert [reward(answer, row) for answer in ("0.5", "9^9^9^9", "$\\frac{2}{4}$", "no number")] == [1.0, 0.0, 1.0, 0.0]


def test_answers_may_be_compared_from_any_thread() -> None:
    reward = MathReward()
    answers = [str(number % 3) for number in range(24)]
    with ThreadPoolExecutor(4) as threads:
        rewards = list(threads.map(lambda answer: reward(answer, {"answer": "2"}), answers))
    assert rewards == [float(answer == "2") for answer in answers]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"promt": "?", "answer": "1"}, "line 1: has no 'prompt'.* Did you mean 'promt'", id="misspelt"),
        pytest.param({"prompt": "?"}, "line 1: has no 'answer', which math_verify compares with", id="no answer"),
        pytest.param(
            {"prompt": "?", "answer": "It is the cat that sat on a mat"},
            "line 1: .* is prose. Write the final",
            id="prose",
        ),
        pytest.param(
            {"prompt": "?", "answer": "1", "tools": [{"name": "f"}]}, "line 1: 'tools' is not read", id="tools"
        ),
        pytest.param(
            {"prompt": "?", "answer": "1", "system": "Be brief."}, "line 1: 'system' is not read", id="system"
        ),
        pytest.param({"prompt": "?", "answer": "1", "weight": 0}, "line 1: 'weight' is not read", id="weight"),
        pytest.param({"prompt": "?", "answer": "1", "train": False}, "line 1: 'train' is not read", id="a flag"),
        pytest.param({"prompt": "?", "answer": "1", "images": ["a"]}, "line 1: 'images' is not read", id="images"),
        pytest.param({"prompt": [{"role": "usr", "content": ""}]}, "line 1: message 0 has the unknown role", id="role"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named_before_anything_is_sampled(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(LossbookError, match=message):
        load_problems(ProblemSettings(data=str(path), held_out=0), 0)


def test_a_reward_function_reads_the_answer_without_spaces_around_it_and_the_row(rows: Path, here: str) -> None:
    (first, *_), _ = load_problems(ProblemSettings(data=str(rows), held_out=0, reward=f"{here}:exact"), 0)
    assert (score(first, " 1/4\n"), score(first, "0.25")) == (1, 0)


def test_a_reward_function_takes_a_tasks_questions_too(here: str) -> None:
    settings = ProblemSettings(task="spell_backward", task_size=2, held_out=1, reward=f"{here}:exact")
    (first, *_), _ = load_problems(settings, 0)
    backward = first.text.rpartition(": ")[2][::-1]
    assert (score(first, backward), score(first, backward + "!")) == (1, 0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "fails",
            r"reward \w+:fails failed on the question 'What is 1 / 4\?' with the answer 'maybe': ZeroDivisionError",
        ),
        (
            "nothing",
            r"reward \w+:nothing returned None on the question .* with the answer 'maybe': it must be a finite",
        ),
        ("not_a_number", r"reward \w+:not_a_number returned nan on the question .* with the answer 'maybe'"),
    ],
)
def test_a_mistake_in_a_reward_function_names_it_the_question_and_the_answer(
    rows: Path, here: str, function: str, message: str
) -> None:
    (first, *_), _ = load_problems(ProblemSettings(data=str(rows), held_out=0, reward=f"{here}:{function}"), 0)
    with pytest.raises(RewardError, match=message):
        score(first, "maybe")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": "math_verfy"}, "no reward is called 'math_verfy'. Did you mean 'math_verify'"),
        ({"reward": "HERE:exat"}, "has no 'exat'. Did you mean 'exact'"),
        ({"reward": "HERE:of_one_argument"}, r"takes \(answer: .*it is called as reward\(answer, row\)"),
        ({"reward": "HERE:__doc__"}, "is a str, not a function"),
        ({"reward": "no_such_module:f"}, "no module is called 'no_such_module'"),
    ],
)
def test_a_reward_that_is_none_is_refused_at_once(
    rows: Path, here: str, settings: dict[str, str], message: str
) -> None:
    settings = {key: value.replace("HERE", here) for key, value in settings.items()}
    with pytest.raises(RewardError, match=message):
        load_problems(ProblemSettings.model_validate({"data": str(rows), "held_out": 0, **settings}), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "leter_counting"}, "no task 'leter_counting'. Did you mean 'letter_counting'"),
        ({"environment": "gues_number"}, "no environment is called 'gues_number'. Did you mean 'guess_number'"),
        ({"environment": "guess_number", "environment_config": {"hihg": 3}}, "does not take {'hihg': 3}"),
        ({"environment": "guess_number", "environment_config": {"high": 1}}, "low 1 must be below high 1"),
    ],
)
def test_a_misspelt_task_environment_or_setting_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_problems(ProblemSettings.model_validate(settings), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "choose one of --task"),
        ({"task": "gcd", "data": "x"}, "choose one of --task"),
        ({"environment": "guess_number", "reward": "math_verify"}, "an environment gives its own rewards"),
        ({"data": "x", "task_config": {"a": 1}}, "task_config is for --task only"),
    ],
)
def test_settings_that_would_not_be_read_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ProblemSettings.model_validate(settings)


def test_a_task_whose_verifier_breaks_on_nonsense_gives_it_nothing() -> None:
    """The verifier of prime_factorization calls int() on whatever the model wrote."""
    (first, *_), _ = load_problems(ProblemSettings(task="prime_factorization", task_size=1, held_out=0), 0)
    assert score(first, "abc") == 0


# --- many turns ------------------------------------------------------------------------------------------------------


def play(environment: GuessNumber, *guesses: str) -> list[Any]:
    environment.reset()
    return [environment.step(guess) for guess in guesses]


def test_guess_number_says_higher_or_lower_and_rewards_the_number() -> None:
    hidden = GuessNumber(seed=3).hidden
    assert 1 < hidden < 9  # so that there is a number on either side
    low, high, hit = play(GuessNumber(seed=3), "1", "I think it is 9.", str(hidden))
    assert [step.messages[0]["content"] for step in (low, high)] == ["Higher.", "Lower."]
    assert [(step.reward, step.done) for step in (low, high, hit)] == [(0, False), (0, False), (1, True)]
    assert [step.state for step in (low, high)] == ["from 2 to 9, 2 left", "from 2 to 8, 1 left"]
    unclear, wide = play(GuessNumber(seed=3), "no", "9")
    assert [step.state for step in (unclear, wide)] == ["from 1 to 9, 2 left", "from 1 to 8, 1 left"]
    again = play(GuessNumber(seed=3, turns=4), str(hidden - 1), "1", str(hidden + 1))
    assert [step.state for step in again] == [
        f"from {hidden} to 9, 3 left",
        f"from {hidden} to 9, 2 left",  # a guess that says nothing new
        f"from {hidden} to {hidden}, 1 left",
    ]


def test_a_last_guess_is_worth_more_the_nearer_it_is_but_never_as_much_as_the_number() -> None:
    hidden = GuessNumber(seed=3).hidden
    near, far, none = (play(GuessNumber(seed=3, turns=1), guess)[0] for guess in (str(hidden - 1), "1", "no"))
    assert near.reward == 0.5 * (1 - 1 / 8)
    assert 1 > near.reward > far.reward > none.reward == 0
    assert all(step.done for step in (near, far, none))


def test_equal_seeds_hide_equal_numbers_and_training_and_held_out_seeds_are_apart() -> None:
    settings = ProblemSettings(environment="guess_number", task_size=4, held_out=2)
    problems, held_out = load_problems(settings, 1)
    again, _ = load_problems(settings, 1)
    texts = [problem.text for problem in [*problems, *held_out]]
    assert len(set(texts)) == 6
    for one, other in zip(problems, again, strict=True):
        assert vars(one.begin()) == vars(other.begin())
