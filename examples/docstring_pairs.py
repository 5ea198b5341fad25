"""Pairs for training an encoder, without a download: docstrings of Python's standard library, and the code of their functions.

    python examples/docstring_pairs.py
    lossbook train embed --config examples/embed.toml

The query is the first sentence of a docstring, the positive is the code without the docstring. A module is either in the training
data or held out, so the encoder has not seen the held-out code.
"""

import ast
import json
import sysconfig
import zlib
from pathlib import Path

LIBRARY = Path(sysconfig.get_paths()["stdlib"])
LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
SHORTEST_QUERY, LONGEST_CODE = 20, 1200  # characters


def pairs_of(source):
    """(first sentence of the docstring, code without it) of each function of a module."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not (docstring := ast.get_docstring(node)):
            continue
        query = " ".join(docstring.split("\n\n")[0].split()).split(". ")[0]
        node.body = node.body[1:]
        if len(query) >= SHORTEST_QUERY and node.body and len(code := ast.unparse(node)) <= LONGEST_CODE:
            yield query, code


rows = {"train": {}, "held_out": {}}
for path in sorted(LIBRARY.rglob("*.py")):
    module = path.relative_to(LIBRARY).with_suffix("").as_posix()
    if LEFT_OUT.isdisjoint(module.split("/")):
        side = "held_out" if zlib.crc32(module.encode()) % 5 == 0 else "train"
        rows[side].update(dict.fromkeys(pairs_of(path.read_text(encoding="utf-8")), module))

seen = {code for _, code in rows["train"]}
rows["held_out"] = {pair: module for pair, module in rows["held_out"].items() if pair[1] not in seen}
for side, pairs in rows.items():
    lines = [json.dumps({"query": query, "positive": code}) for query, code in pairs]
    Path(f"docstrings_{side}.jsonl").write_text("\n".join(lines) + "\n")
    print(f"docstrings_{side}.jsonl: {len(lines)} pairs from {len(set(pairs.values()))} modules")
