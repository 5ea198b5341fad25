"""Preference data for `lossbook train dpo` and `train reward`: is a number even or odd? Writes pairs.jsonl and
pairs_held_out.jsonl.

Every question has a right and a wrong answer of one word. Half of the numbers are even, and half of the questions name "odd"
first, so neither a liking for one word, nor for the first one named, nor length tells them apart: a model that does not look
at the number is right half of the time. No number is in both files.
"""

import json
import random

drawn = random.Random(0)
numbers = drawn.sample(range(1000, 10000), 224)
evens, odds = ([number for number in numbers if number % 2 == rest][:100] for rest in (0, 1))


def row(number):
    """One question as a row of chosen and rejected answers."""
    words = ["even", "odd"] if drawn.random() < 0.5 else ["odd", "even"]
    right, wrong = ("even", "odd") if number % 2 == 0 else ("odd", "even")
    return {
        "prompt": [{"role": "user", "content": f"Is {number} {words[0]} or {words[1]}?"}],
        "chosen": [{"role": "assistant", "content": right}],
        "rejected": [{"role": "assistant", "content": wrong}],
    }


rows = [row(number) for pair in zip(evens, odds, strict=True) for number in pair]
held_out, trained_on = rows[:40], rows[40:]
drawn.shuffle(trained_on)
for name, chosen_rows in (("pairs.jsonl", trained_on), ("pairs_held_out.jsonl", held_out)):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(chosen_row) + "\n" for chosen_row in chosen_rows)
