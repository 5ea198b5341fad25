"""The protocol of an environment: it gives messages, takes an answer and gives a reward, until it is done.

    class Echo:
        def reset(self):
            return [{"role": "user", "content": "Say hello"}]

        def step(self, answer):
            return Step(reward=float("hello" in answer.lower()))

A recipe makes one object per episode, calls `reset` once, and `step` with each answer until `done`. All episodes of a
problem must begin with the same messages, since their rewards are compared with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

#: {"role": "user" or another role that the model's chat template knows, "content": text}.
Message = Mapping[str, str]


@dataclass(frozen=True)
class Step:
    """The environment's reaction to an answer.

    reward    of this answer, unitless; an episode's reward is the sum over its answers
    done      whether the episode ends here
    messages  the environment's reply, if the episode goes on; its tokens are never learned
    state     what identifies where the episode is now, for advantages that compare turns of different episodes (gigpo);
              None: the text of `messages`
    """

    reward: float = 0.0
    done: bool = True
    messages: Sequence[Message] = ()
    state: str | None = None


class Environment(Protocol):
    """One episode."""

    def reset(self) -> Sequence[Message]:
        """The first messages, up to the assistant's first answer."""
        ...

    def step(self, answer: str) -> Step:
        """The reaction to an answer of the assistant, given as text without the end of its turn."""
        ...


@dataclass(frozen=True)
class Problem:
    """The start of episodes. text: its name in samples and errors. begin(): makes the environment of a new episode."""

    text: str
    begin: Callable[[], Environment]


@dataclass(frozen=True)
class SingleTurn:
    """One prompt, one answer, and its score."""

    messages: Sequence[Message]
    score: Callable[[str], float]

    def reset(self) -> Sequence[Message]:
        """The prompt."""
        return self.messages

    def step(self, answer: str) -> Step:
        """The answer's score; the episode is done."""
        return Step(reward=self.score(answer))
