"""A reward function for `lossbook train rl --reward examples.rewards:brief_count`."""

import re
from collections.abc import Mapping
from typing import Any


def brief_count(answer: str, row: Mapping[str, Any]) -> float:
    """0.5 if the first number is right, plus 0.5 times the number's share of the answer's characters.

    answer  the model's text
    row     {"question": ..., "answer": "2", ...}, as in the task letter_counting

    With a share of words instead of characters SmolLM2 learned "1:1:1:1:1:1:1:", a right number and one word.
    """
    first = re.search(r"\d+", answer)
    if first is None:
        return 0.0
    return 0.5 * (first.group() == row["answer"]) + 0.5 * len(first.group()) / len(answer)


if __name__ == "__main__":
    right = {"answer": "2"}
    for text in ("2", "3", 'The letter "a" appears 2 times.', "I do not know"):
        print(f"{brief_count(text, right):.2f}  {text}")
