"""Reward functions for `lossbook train rl --reward examples.rewards:brief_count`: the model's text and a row of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def brief_count(answer: str, row: Mapping[str, Any]) -> float:
    """0.5 for the right number, and 0.5 divided by the number of words: 1 for the right number and nothing else.

    answer  what the model wrote
    row     {"question": ..., "answer": "2", ...}, as of the task letter_counting
    """
    numbers = re.findall(r"\d+", answer)
    if not numbers:
        return 0.0
    return 0.5 * (numbers[0] == row["answer"]) + 0.5 / len(answer.split())


if __name__ == "__main__":
    right = {"answer": "2"}
    for text in ("2", "3", 'The letter "a" appears 2 times.', "I do not know"):
        print(f"{brief_count(text, right):.2f}  {text}")
