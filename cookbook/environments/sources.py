"""The problems of a configuration: from a reasoning-gym task, a data file, or an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ...datums.chat.messages import check_messages
from ...datums.errors import DataFileError, LossbookError, RewardError, TaskError, did_you_mean, located
from ...datums.extras import named_in, user_module
from ...datums.files.formats import key_names
from ...datums.files.keys import check_prompt_keys
from ...datums.files.sources import read_rows
from ..settings.choices import SECONDS
from ..settings.problems import ProblemSettings
from ..tasks.reasoning_gym_tasks import Question, Task
from .confined_reward import ConfinedReward
from .guess_number import GuessNumber
from .math_answers import MathReward
from .protocol import Environment, Message, Problem, SingleTurn
from .rewards import Reward, check_reward, rewarded

#: Environments by name. Each is called with a seed and the settings, and makes one episode.
ENVIRONMENTS: dict[str, Callable[..., Environment]] = {"guess_number": GuessNumber}
#: Rewards by name, called with the seconds that they may take for an answer; any other is a `module:function`. A task's default is its own verifier.
REWARDS: dict[str, Callable[[float], Reward]] = {"math_verify": MathReward}


def load_problems(settings: ProblemSettings, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on, and held-out ones. Equal arguments give equal problems.

    Raises TaskError, RewardError and DataFileError, with the likeliest name for a misspelt one.
    """
    if settings.environment is not None:
        return _environments(settings, seed)
    seconds = settings.reward_seconds
    reward = None if settings.reward is None else named_reward(settings.reward, seconds)
    if settings.confine_rewards:
        reward = ConfinedReward(settings.reward or "", seconds)
    if settings.task is not None:
        task = Task(settings.task, settings.task_config, seed=seed, seconds=seconds)
        held_out = task.held_out(settings.held_out)
        make = partial(_of_question, task=task, reward=reward, name=settings.reward)
        return [make(q) for q in task.training(settings.task_size, held_out)], [make(q) for q in held_out]
    return _rows(settings, reward or MathReward(seconds), settings.reward or "math_verify")


def named_reward(name: str, seconds: float = SECONDS) -> Reward:
    """A reward by its name in REWARDS, with a time limit, or as `module:function`. Raises RewardError."""
    if name in REWARDS:
        return REWARDS[name](seconds)
    if ":" not in name:
        hint = did_you_mean(name, REWARDS)
        raise RewardError(
            f"no reward is called {name!r}.{hint} There is {', '.join(REWARDS)}, or name a module:function"
        )
    return check_reward(_imported(name, RewardError, "reward"), name)


def _imported(path: str, error: type[LossbookError], what: str) -> Any:
    """What `module:name` names. Raises `error`, with the likeliest name where the module has no such."""
    if (module := user_module(path)) is None:
        name = path.partition(":")[0]
        raise error(f"{what} {path}: no module is called {name!r}, neither installed nor in this folder")
    return named_in(module, path, error)


def _environments(settings: ProblemSettings, seed: int) -> tuple[list[Problem], list[Problem]]:
    name = settings.environment or ""
    if name in ENVIRONMENTS:
        make = ENVIRONMENTS[name]
    elif ":" in name:
        make = _imported(name, TaskError, "environment")
    else:
        hint = did_you_mean(name, ENVIRONMENTS)
        raise TaskError(
            f"no environment is called {name!r}.{hint} There is {', '.join(ENVIRONMENTS)}, or name a module:Class"
        )
    try:
        make(seed=0, **settings.environment_config)
    except TypeError as error:
        raise TaskError(f"environment {name} does not take {settings.environment_config}: {error}") from None
    first = seed * 1_000_003
    problems = [
        Problem(f"{name}, seed {at}", partial(make, seed=at, **settings.environment_config))
        for at in range(first, first + settings.held_out + settings.task_size)
    ]
    return problems[settings.held_out :], problems[: settings.held_out]


def _of_question(question: Question, *, task: Task, reward: Reward | None, name: str | None) -> Problem:
    if reward is None:
        score = partial(task.score, question)
    else:
        if isinstance(reward, MathReward):
            if question.answer is None:
                raise TaskError(
                    f"{task.name} has no right answers, which math_verify compares with: leave --reward out"
                )
            reward.right_answer(question.answer)  # checked now, before the model answers
        score = partial(rewarded, reward, name or "", question.text, task.row(question))
    messages = [{"role": "user", "content": question.text}]
    return Problem(question.text, partial(SingleTurn, messages, score))


def _rows(settings: ProblemSettings, reward: Reward, name: str) -> tuple[list[Problem], list[Problem]]:
    problems = [_of_row(row, reward, name) for row in read_rows(settings.data or "")]
    if settings.eval_data is not None:
        return problems, [_of_row(row, reward, name) for row in read_rows(settings.eval_data)]
    if settings.held_out >= len(problems):
        raise DataFileError(
            f"{settings.data} has {len(problems)} rows, and holding out {settings.held_out} leaves none to train on: choose a "
            "smaller --held-out, or --eval-data FILE"
        )
    kept = len(problems) - settings.held_out
    return problems[:kept], problems[kept:]


def _of_row(row: Mapping[str, Any], reward: Reward, name: str) -> Problem:
    place = getattr(row, "place", "row")
    prompt = row.get("prompt")
    if prompt is None:
        hint = did_you_mean("prompt", row)
        raise DataFileError(f"{place}: has no 'prompt'; it holds the keys {key_names(row)}.{hint}")
    try:
        check_prompt_keys(row)
        messages: Sequence[Message] = (
            [{"role": "user", "content": prompt}] if isinstance(prompt, str) else check_messages(prompt)
        )
        if isinstance(reward, MathReward):
            if row.get("answer") is None:
                raise DataFileError(
                    f"has no 'answer', which math_verify compares with; it holds the keys {key_names(row)}"
                )
            reward.right_answer(str(row["answer"]))  # checked now, before the model answers
        if isinstance(reward, ConfinedReward):
            reward.check_row(row)
    except LossbookError as error:
        raise located(error, place) from None
    text = prompt if isinstance(prompt, str) else str(messages[-1]["content"])
    return Problem(text, partial(SingleTurn, messages, partial(rewarded, reward, name, text, row)))
