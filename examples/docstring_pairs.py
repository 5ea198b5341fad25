"""Pairs to train an encoder on, with nothing downloaded: what a function of Python's standard library says it does, and its code.

    python examples/docstring_pairs.py
    lossbook train embed --config examples/embed.toml

The query is the first sentence of a docstring, the positive is the code without the docstring. Modules are either trained
on or held out, never both, so what is held out is code that the encoder has not seen.
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
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not (said := ast.get_docstring(node)):
            continue
        query = " ".join(said.split("\n\n")[0].split()).split(". ")[0]
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
