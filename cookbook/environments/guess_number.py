"""An environment of several turns: find a hidden number from "higher" and "lower"."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ...datums.errors import TaskError
from .protocol import Message, Step


class GuessNumber:
    """The assistant guesses a number from `low` to `high` in at most `turns` answers, and is told "higher" or "lower".

    The reward comes at the end: 1 for the number; else half of 1 - (distance of the last guess) / (high - low), so that
    nearer guesses earn more; 0 for a last answer without a number in the range. Equal seeds hide equal numbers.
    """

    def __init__(self, seed: int, low: int = 1, high: int = 9, turns: int = 3) -> None:
        if not low < high or turns < 1:
            raise TaskError(f"guess_number: low {low} must be below high {high}, and turns {turns} at least 1")
        self.low, self.high, self.turns = low, high, turns
        self.hidden = random.Random(seed).randint(low, high)
        self.guesses = 0
        self.known = (low, high)

    def reset(self) -> Sequence[Message]:
        """The rules."""
        rules = f"Guess my number from {self.low} to {self.high}. Answer with the number only."
        return [{"role": "user", "content": rules}]

    def step(self, answer: str) -> Step:
        """Higher, lower, or the end."""
        self.guesses += 1
        number = re.search(r"\d+", answer)
        guess = None if number is None else int(number.group())
        if guess is not None and not self.low <= guess <= self.high:
            guess = None
        if guess == self.hidden:
            return Step(reward=1.0)
        if self.guesses == self.turns:
            return Step(reward=0.0 if guess is None else 0.5 * (1 - abs(guess - self.hidden) / (self.high - self.low)))
        said = f"A number from {self.low} to {self.high}, please." if guess is None else self._hint(guess)
        left = self.turns - self.guesses
        state = f"from {self.known[0]} to {self.known[1]}, {left} left"
        return Step(done=False, messages=[{"role": "user", "content": said}], state=state)

    def _hint(self, guess: int) -> str:
        lowest, highest = self.known
        if self.hidden > guess:
            self.known = (max(lowest, guess + 1), highest)
            return "Higher."
        self.known = (lowest, min(highest, guess - 1))
        return "Lower."
