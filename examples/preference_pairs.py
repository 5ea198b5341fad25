"""Preference data for `lossbook train dpo` and `train reward`: writes pairs.jsonl and pairs_held_out.jsonl.

Half of the questions ask for a number alone, the other half for a sentence. Both answers of a pair are right; the chosen one has the
form that the question asks for. It is the shorter one in half of the pairs, so a model that always prefers one form gets half of them
right. No sum is in both files.
"""

import json
import random

BRIEF = ("Just the number:", "Briefly:")
SENTENCE = ("In a sentence:", "Spelled out:")

drawn = random.Random(0)
sums = [(a, b) for a in range(10, 50) for b in range(10, 50)]
drawn.shuffle(sums)


def row(a, b, is_brief):
    """One question as a row of chosen and rejected answers."""
    number, sentence = str(a + b), f"{a} plus {b} is {a + b}."
    chosen, rejected = (number, sentence) if is_brief else (sentence, number)
    wish = drawn.choice(BRIEF if is_brief else SENTENCE)
    return {
        "prompt": [{"role": "user", "content": f"{wish} {a} + {b}?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


rows = [row(a, b, i % 2 == 0) for i, (a, b) in enumerate(sums[:160])]
for name, part in (("pairs_held_out.jsonl", rows[:32]), ("pairs.jsonl", rows[32:])):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in part)
