"""Reward functions for `lossbook train rl --reward examples.rewards:brief_count`: the model's text and a row of the data."""

import re
from collections.abc import Mapping
from typing import Any


def brief_count(answer: str, row: Mapping[str, Any]) -> float:
    """0.5 for the right number first, and up to 0.5 for saying nothing else: the share of the answer that this number is.

    answer  what the model wrote
    row     {"question": ..., "answer": "2", ...}, as of the task letter_counting

    The share is of characters. With words in its place SmolLM2 found "1:1:1:1:1:1:1:", a right number and one word.
    """
    first = re.search(r"\d+", answer)
    if first is None:
        return 0.0
    return 0.5 * (first.group() == row["answer"]) + 0.5 * len(first.group()) / len(answer)


if __name__ == "__main__":
    right = {"answer": "2"}
    for text in ("2", "3", 'The letter "a" appears 2 times.', "I do not know"):
        print(f"{brief_count(text, right):.2f}  {text}")
