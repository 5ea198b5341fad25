"""`Loops`: runs of the cookbook's programs, each at most once a session, and what they logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from .workspace import STUDENT

LOSSBOOK = [sys.executable, "-c", "import sys; from lossbook.cookbook.cli import main; sys.exit(main())"]
SCRIPTS = Path(__file__).parent / "scripts"
#: Seconds after which a run that hangs is ended: many times what it takes.
LIMIT = 900
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "COLUMNS": "160",
}


class Loops:
    """The cookbook's programs in one working folder.

    Processes of pytest-xdist share the folder and the runs in it: the first that needs a run makes it, the others wait.

    command       what runs the program whose words follow
    environment   further variables of it
    """

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.folder, self._command = folder, list(command)
        self._environment = {**ENVIRONMENT, "HF_HOME": str(folder / "hub"), **environment}

    def run(self, name: str, *arguments: str) -> None:
        """Run a program in the working folder, if no earlier call of this name did it; fails as the run failed."""
        done, log = self.folder / f"{name}.exit", self.folder / f"{name}.log"
        with FileLock(self.folder / f"{name}.lock"):
            if not done.exists():
                done.write_text(self._outcome(log, arguments), encoding="utf-8")
        if (outcome := done.read_text(encoding="utf-8")) != "0":
            printed = log.read_text(encoding="utf-8", errors="replace")[-6000:]
            pytest.fail(f"{' '.join([*self._command, *arguments])} ended with {outcome}:\n{printed}")

    def script(self, name: str) -> None:
        """Run scripts/NAME.py, once."""
        self.run(name, str(SCRIPTS / f"{name}.py"))

    def sl_loop(self, name: str) -> None:
        """Run recipes/sl_loop.py by its own command line, once."""
        self.recipe("sl_loop", name, "batch_size=8", "learning_rate=1e-2", "save_every=2")

    def recipe(self, module: str, name: str, *settings: str) -> None:
        """Run a module of the cookbook's recipes once, as `python -m`, with seeds, which the recipe leaves to chance."""
        program = (str(SCRIPTS / "seeds.py"), f"tinker_cookbook.recipes.{module}")
        self.run(name, *program, f"model_name={STUDENT}", "lora_rank=4", *settings, f"log_path=runs/{name}")

    def _outcome(self, log: Path, arguments: tuple[str, ...]) -> str:
        begun = time.monotonic()
        with log.open("wb") as out:
            try:
                done = subprocess.run(
                    [*self._command, *arguments],
                    cwd=self.folder,
                    env=os.environ | self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    timeout=LIMIT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"no end within {LIMIT} seconds"
            out.write(f"\n{time.monotonic() - begun:.1f} seconds\n".encode())
        return str(done.returncode)

    def rows(self, run: str, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
        """The lines of a run's file."""
        lines = (self.folder / "runs" / run / file).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def numbers(self, run: str, metric: str) -> dict[int, float]:
        """A metric by the step at which it was logged."""
        return {row["step"]: row[metric] for row in self.rows(run) if metric in row}

    def first_and_last(self, run: str, metric: str) -> tuple[float, float]:
        numbers = self.numbers(run, metric)
        return numbers[min(numbers)], numbers[max(numbers)]
