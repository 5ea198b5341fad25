"""What the documents show must run as it stands: every Python block, in order, on the tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Pages whose block needs files beside it, and the tests that run it with them.
ELSEWHERE = {"docs/data.md": "tests/docs/test_data_guide.py"}
#: Every other document that shows Python.
DOCUMENTS = [
    str(path.relative_to(ROOT))
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    if "```python\n" in path.read_text(encoding="utf-8") and str(path.relative_to(ROOT)) not in ELSEWHERE
]
RUNNER = ROOT / "tests" / "documents.py"


def part_of(document: str) -> str:
    """The folder of a page, such as `docs/how-to`; `docs` of those that lie in it, and in the root."""
    folder = str(Path(document).parent)
    return "docs" if folder == "." else folder


PARTS = {part: [name for name in DOCUMENTS if part_of(name) == part] for part in sorted(set(map(part_of, DOCUMENTS)))}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("part", PARTS)
def test_every_python_block_runs_in_order(part: str, tmp_path: Path) -> None:
    # In processes of their own: the blocks register losses, and tests beside this one list those that are registered.
    command = [sys.executable, str(RUNNER), *(str(ROOT / document) for document in PARTS[part])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ran ") == len(PARTS[part])
    assert ": ran 0 blocks" not in done.stdout


def test_the_commit_that_contributing_shows_is_in_the_code() -> None:
    (diff,) = re.findall(
        r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    files = re.findall(r"^\+\+\+ b/(.+)$", diff, re.MULTILINE)
    assert len(files) == 1, "a loss touches one file"
    added = "\n".join(line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++"))
    assert added.strip() in (ROOT / files[0]).read_text(encoding="utf-8")
