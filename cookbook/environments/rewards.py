"""Reward functions: `reward(answer, row) -> float`, by `module:function`.

    # my_rewards.py
    def short(answer: str, row: Mapping[str, Any]) -> float:
        return 1.0 if row["answer"] in answer and len(answer) < 40 else 0.0

answer  the model's text, without the end of its turn and without spaces around it
row     the row of the data file with all its keys, or {"question", "answer", "metadata"} of a reasoning-gym task as JSON values
returns the reward, a finite unitless number; rewards of one prompt are compared, so only their differences matter

It is called in a thread of its own, for one answer at a time; with --confine-rewards in a process of its own, which keeps
nothing from one answer to the next (`confined_reward.py`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from ...datums.errors import LossbookError, RewardError
from ..confined.process import Failure

Reward = Callable[[str, Mapping[str, Any]], "float | Failure"]


def check_reward(function: Any, name: str) -> Reward:
    """The function, checked to take an answer and a row. Raises RewardError otherwise."""
    if not callable(function):
        raise RewardError(f"reward {name} is a {type(function).__name__}, not a function reward(answer, row)")
    try:
        inspect.signature(function).bind("", {})
    except TypeError:
        raise RewardError(
            f"reward {name} takes {inspect.signature(function)}, but it is called as reward(answer, row): the model's "
            "text and the row of the data"
        ) from None
    except ValueError:  # a builtin without a signature: calling it will show
        pass
    return cast(Reward, function)


def rewarded(reward: Reward, name: str, question: str, row: Mapping[str, Any], answer: str) -> float:
    """The reward of an answer. Raises RewardError with the function, the question and the answer where it fails."""
    place = f"on the question {shortened(question)} with the answer {shortened(answer)}"
    try:
        value = reward(answer.strip(), row)
    except LossbookError:
        raise
    except Exception as error:
        raise RewardError(f"reward {name} failed {place}: {type(error).__name__}: {error}") from error
    if isinstance(value, Failure):
        raise RewardError(f"reward {name} failed {place}: {value.text}")
    return checked_number(value, f"reward {name}", place)


def checked_number(value: Any, who: str, place: str) -> float:
    """A reward as a float. Raises RewardError for anything but a finite number."""
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if isinstance(value, str) or not math.isfinite(number):
        raise RewardError(f"{who} returned {value!r} {place}: it must be a finite number, such as 0.0 or 1.0")
    return number


def shortened(text: str, length: int = 120) -> str:
    """`text` in quotes, without its middle where it is long."""
    if len(text) > length:
        text = f"{text[: length // 2]} ... {text[-length // 3 :]}"
    return repr(text)
