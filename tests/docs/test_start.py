"""The commands of docs/start and of the how-to on comparing losses, as a newcomer would type them in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
#: Runs command lines one after the other in one process: starting Python takes longer than most of them.
RUNNER = """
import shlex, sys
from lossbook.cookbook.cli import main
for line in sys.argv[1:]:
    print("$", line, flush=True)
    if code := main(shlex.split(line)[1:]):
        sys.exit(f"exit code {code}: {line}")
"""


def typed(page: str, folder: Path) -> list[str]:
    """Write the files that a page shows into the folder, and return its commands that read no other file."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, content in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(content, encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [
        line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("lossbook ")
    ]
    commands = [shlex.join(shlex.split(line, comments=True)) for line in lines]
    return [line for line in commands if all((folder / name).exists() for name in re.findall(r"\S+\.jsonl", line))]


def run(commands: list[str], folder: Path) -> str:
    environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    line = [sys.executable, "-c", RUNNER, *commands]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_a_newcomers_path_runs_as_it_stands(tmp_path: Path) -> None:
    commands = [
        line
        for page in ("start/install.md", "start/first-run.md", "start/your-own-loss.md", "how-to/compare-losses.md")
        for line in typed(page, tmp_path)
        if line.split()[1] not in ("doctor", "--version", "--help")  # these have tests of their own
    ]
    assert len(commands) >= 19
    printed = run(commands, tmp_path)
    assert "loss=my_losses:steep" in printed
    assert "minus the first" in printed
    assert (tmp_path / "both.png").stat().st_size > 10_000
    page = (tmp_path / "runs" / "steep" / "report.html").read_text(encoding="utf-8")
    assert "the less the model expects a token, the more it counts" in page  # the loss's card
