"""The files and commands of docs/your-own.md, as a newcomer would write and run them in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "your-own.md").read_text(encoding="utf-8")
LOSSBOOK = [sys.executable, "-c", "import sys; from lossbook.cookbook.cli import main; sys.exit(main())"]


@pytest.mark.slow
def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    for name, text in re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(text, encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("lossbook ")]
    assert len(commands) >= 8
    for words in commands:
        environment = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run([*LOSSBOOK, *words[1:]], cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "both.png").stat().st_size > 10_000
    page = (tmp_path / "runs" / "steep" / "report.html").read_text(encoding="utf-8")
    assert "steep" in page
    assert "the less the model expects a token, the more it counts" in page  # its card
