"""What the documents show must run as it stands: every Python block, in order, on the tiny model."""

from __future__ import annotations

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
#: The same, with the pages of losses, whose many blocks are short, in one process.
PROCESSES = {name: [name] for name in DOCUMENTS if not name.startswith("docs/losses/")}
PROCESSES["docs/losses"] = [name for name in DOCUMENTS if name.startswith("docs/losses/")]
#: Runs the blocks of each document in one namespace; line numbers in a traceback are those of the document.
RUNNER = """
import re, sys
from pathlib import Path
for document in map(Path, sys.argv[1:]):
    text = document.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    namespace = {"__name__": "__main__"}
    for block in blocks:
        first_line = text.count("\\n", 0, block.start(1))
        exec(compile("\\n" * first_line + block.group(1), str(document), "exec"), namespace)
    print(f"ran {len(blocks)} blocks")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_every_python_block_runs_in_order(name: str, tmp_path: Path) -> None:
    # In a process of its own: the blocks register losses, and tests beside this one list those that are registered.
    command = [sys.executable, "-c", RUNNER, *(str(ROOT / document) for document in PROCESSES[name])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ran 0 blocks" not in done.stdout


def test_the_commit_that_contributing_shows_is_in_the_code() -> None:
    (diff,) = re.findall(
        r"^```diff\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    files = re.findall(r"^\+\+\+ b/(.+)$", diff, re.MULTILINE)
    assert len(files) == 1, "a loss touches one file"
    added = "\n".join(line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++"))
    assert added.strip() in (ROOT / files[0]).read_text(encoding="utf-8")
