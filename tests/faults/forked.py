"""Runs of the command line in children of one process that has imported everything (`runner.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("runner.py")
ROWS = [("red", "rose"), ("blue", "sky"), ("green", "grass"), ("white", "snow"), ("black", "coal")]
#: A run of five steps with two checkpoints before the last.
FLAGS = [
    *("train", "sft", "--data", "train.jsonl", "--steps", "5", "--batch-size", "2", "--rank", "2", "--save-every", "2"),
    *("--sample-prompts", "red", "--sample-tokens", "2"),
]


class Runner:
    """The process that forks a child for each order, and what an undisturbed run records."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders = 0
        rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ROWS]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.process = subprocess.Popen(
            [sys.executable, str(RUNNER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        assert self.order(flags=[*FLAGS, "--out", "whole"])["code"] == 0
        self.whole = self.order(recorded="whole")

    def order(self, **order: Any) -> dict[str, Any]:
        """What came of one order: `flags` with perhaps a `failpoint`, `recorded`, or `together`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.orders += 1
        self.process.stdin.write(json.dumps({**order, "number": self.orders}) + "\n")
        self.process.stdin.flush()
        while (answer := json.loads(self.process.stdout.readline())).pop("number") != self.orders:
            pass  # of an order that a test's timeout cut off
        return answer

    def close(self) -> None:
        self.process.communicate(timeout=60)
