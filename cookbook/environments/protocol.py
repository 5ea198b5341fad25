"""What an environment is: messages out, an answer in, a reward now and then, until it is done.

    class Echo:
        def reset(self):
            return [{"role": "user", "content": "Say hello"}]

        def step(self, answer):
            return Step(reward=float("hello" in answer.lower()))

A recipe runs every episode on an object of its own, calls `reset` once and `step` with each answer until `done`. Equal
problems must begin alike, for the answers to one problem are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

#: {"role": "user" or another role that the model's chat template knows, "content": text}.
Message = Mapping[str, str]


@dataclass(frozen=True)
class Step:
    """What an answer leads to.

    reward    of this answer, unitless; an episode's reward is the sum over its answers
    done      whether the episode ends here
    messages  what the environment says to an answer that did not end the episode; tokens of it are never learned
    """

    reward: float = 0.0
    done: bool = True
    messages: Sequence[Message] = ()


class Environment(Protocol):
    """One episode."""

    def reset(self) -> Sequence[Message]:
        """The messages that it begins with, up to where the assistant answers first."""
        ...

    def step(self, answer: str) -> Step:
        """What follows from an answer of the assistant: its text, without the end of its turn."""
        ...


@dataclass(frozen=True)
class Problem:
    """What episodes begin from. text names it in samples and errors; `begin()` makes the environment of a new episode."""

    text: str
    begin: Callable[[], Environment]


@dataclass(frozen=True)
class SingleTurn:
    """One prompt, one answer, and a score of it."""

    messages: Sequence[Message]
    score: Callable[[str], float]

    def reset(self) -> Sequence[Message]:
        """The prompt."""
        return self.messages

    def step(self, answer: str) -> Step:
        """The score; the episode is over."""
        return Step(reward=self.score(answer))
