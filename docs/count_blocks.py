"""How much of what the documents show is run by the tests, or held to the code by them.

    python docs/count_blocks.py

tests/docs/test_site.py holds that no block of Python is left out.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^(`{3,})(\S*)([^\n]*)\n(.*?)^\1$", re.DOTALL | re.MULTILINE)
#: Kind of block -> what the tests do with it.
TESTS = {
    "python": "run (tests/test_readme.py, tests/docs/test_data_guide.py)",
    "python excerpt": "compared with the file that is named (tests/test_documents.py)",
    "python no-run": "only shown: it needs what tests do not have",
    "lossbook command": "parsed as a command line (tests/test_documents.py)",
    "row of data": "read, and its tokens compared (tests/docs/test_data_guide.py)",
    "gallery script": "run, and its claims checked (tests/test_gallery.py)",
    "example": "run (tests/test_examples.py)",
}


def documents() -> list[Path]:
    """The Markdown files at the root and below docs/."""
    below = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in path.parts]
    return [*sorted(ROOT.glob("*.md")), *below]


def count() -> Counter[str]:
    """The number of blocks of each kind."""
    counts: Counter[str] = Counter()
    for document in documents():
        for _, language, rest, block in FENCE.findall(document.read_text(encoding="utf-8")):
            if language == "python":
                counts[f"python {rest.strip().partition('=')[0]}".strip()] += 1
            elif language in ("bash", "sh", "console"):
                counts["lossbook command"] += len(re.findall(r"^(?:\$ )?(?:\w+=\S+ )*lossbook ", block, re.MULTILINE))
            elif language == "jsonl" and document.name == "data.md":
                counts["row of data"] += 1
    counts["gallery script"] = len(list((ROOT / "examples" / "gallery").glob("*/*.py")))
    counts["example"] = len(list((ROOT / "examples").glob("*.py")))
    return counts


def main() -> None:
    """Print the counts."""
    counts = count()
    for kind, what in TESTS.items():
        print(f"{counts[kind]:5}  {kind:17} {what}")
    print(f"{sum(counts.values()):5}  in all")


if __name__ == "__main__":
    main()
