"""`kill -9` in the middle of `lossbook train rl`: what is resumed ends in the numbers of a run that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import rl
from lossbook.cookbook.run.runs import read_metrics, read_rows

#: Numbers that say how long something took.
TIMES = ("tokens_per_second", "sampling_seconds")
ROOT = Path(rl.__file__).resolve().parents[1]


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All that was recorded, apart from times."""
    return [
        {key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("off_policy_steps", [0, 1])
def test_after_kill_9_a_run_goes_on_to_the_same_metrics_bit_for_bit(tmp_path: Path, off_policy_steps: int) -> None:
    flags = ["--task", "spell_backward", "--task-config", "min_word_len", "3", "max_word_len", "3", "--task-size", "64"]
    flags += ["--all-weights", "--learning-rate", "1e-3", "--max-tokens", "6", "--steps", "10", "--save-every", "2"]
    flags += [
        "--eval-every",
        "5",
        "--held-out",
        "4",
        "--minibatches",
        "2",
        "--dynamic-sampling",
        "1",
        "--device",
        "cpu",
    ]
    flags += ["--off-policy-steps", str(off_policy_steps)]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert _start(flags, whole).wait(timeout=900) == 0
    process = _start(flags, killed)
    while not (killed / "checkpoints" / "step-000004").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == -signal.SIGKILL
    before = read_rows_of_a_killed_run(killed)
    assert 0 < max(row["step"] for row in before) < 10
    assert _start([*flags, "--resume"], killed).wait(timeout=900) == 0
    assert numbers(killed) == numbers(whole)
    assert read_rows(killed / "samples.jsonl") == read_rows(whole / "samples.jsonl")


def read_rows_of_a_killed_run(folder: Path) -> list[dict[str, Any]]:
    """Its metrics; the last line may be cut."""
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _start(flags: list[str], out: Path) -> subprocess.Popen[bytes]:
    code = "import sys; from lossbook.cookbook.cli import main; sys.exit(main(sys.argv[1:]))"
    path = os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", code, "train", "rl", *flags, "--out", str(out)]
    return subprocess.Popen(
        command, env=environment, cwd=out.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
