"""A run that is started, stopped, killed, damaged and resumed in any order ends as one that nothing happened to.

The command line runs in children that one process forks, which has imported everything once (`sweep.py`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from .forked import FLAGS, Runner

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

#: Files that a run of these flags leaves, to damage.
FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "data_digest.json", "kept", "checkpoints")
POINTS = st.integers(1, 60)


class Runs(RuleBasedStateMachine):
    """The rules; whatever they did, `teardown` finishes the run and compares."""

    runner: ClassVar[Runner]
    counts: ClassVar[Counter[str]] = Counter()
    number: ClassVar[int] = 0

    @initialize()
    def begin(self) -> None:
        type(self).number += 1
        self.out = f"run-{self.number}"
        self.path = self.runner.folder / self.out
        self.undo: list[tuple[Path, bytes]] = []

    def run(self, what: str, *more: str, failpoint: str | None = None) -> dict[str, Any]:
        """Begin the run, or go on with it where it can be resumed."""
        self.counts[what] += 1
        resume = ["--resume"] if (self.path / "config.json").exists() else []
        order: dict[str, Any] = {"flags": [*FLAGS, "--out", self.out, *resume, *more]}
        done = self.runner.order(**order, **({} if failpoint is None else {"failpoint": failpoint}))
        assert "Traceback" not in done["error"], done["error"]
        return done

    @rule(number=POINTS)
    def killed(self, number: int) -> None:
        assert self.run("killed", failpoint=f"kill@{number}")["code"] in (0, -9)

    @rule(number=POINTS)
    def torn(self, number: int) -> None:
        assert self.run("torn", failpoint=f"torn@{number}")["code"] in (0, -9)

    @rule(number=POINTS, action=st.sampled_from(("enospc", "eio", "short")), lasting=st.sampled_from(("", "+")))
    def on_a_failing_disk(self, number: int, action: str, lasting: str) -> None:
        assert self.run("failing disk", failpoint=f"{action}@{number}{lasting}")["code"] in (0, 1)

    @rule(number=st.integers(1, 40))
    def stopped(self, number: int) -> None:
        """SIGTERM at an operation: it ends the step, saves, exits with 143; before the first step it ends at once."""
        assert self.run("stopped", failpoint=f"stop@{number}")["code"] in (0, 143, -15)

    @rule()
    def undisturbed(self) -> None:
        assert self.run("undisturbed")["code"] == 0

    @precondition(lambda self: (self.path / "config.json").exists())
    @rule()
    def twice_at_once(self) -> None:
        """Two processes resume it: one goes on, the other is refused, naming it; or they did not meet."""
        self.counts["twice at once"] += 1
        done = self.runner.order(together=[*FLAGS, "--out", self.out, "--resume"])
        codes = sorted(done["codes"])
        assert codes in ([0, 0], [0, 1]), done["error"]
        assert "Traceback" not in done["error"], done["error"]

    @precondition(lambda self: (self.path / "config.json").exists())
    @rule()
    def begun_again_in_the_same_folder(self) -> None:
        """Without --resume or --overwrite a folder with a run is refused."""
        if not (self.path / "metrics.jsonl").exists():
            return
        self.counts["refused"] += 1
        done = self.runner.order(flags=[*FLAGS, "--out", self.out])
        assert done["code"] == 1
        assert "is not empty" in done["error"]

    @precondition(lambda self: (self.path / "config.json").exists())
    @rule()
    def resumed_with_other_settings(self) -> None:
        self.counts["refused"] += 1
        done = self.run("other settings", "--seed", "7")
        assert done["code"] == 1
        assert "seed was 0, is 7" in done["error"]

    @precondition(lambda self: (self.path / "config.json").exists())
    @rule(data=st.data(), how=st.sampled_from(("half", "empty", "middle bit")))
    def damaged(self, data: Any, how: str) -> None:
        """A file is damaged: going on refuses it by name, and after it is restored goes on; or goes on from before it."""
        files = sorted(
            path
            for path in self.path.rglob("*")
            if path.is_file() and path.stat().st_size and path.relative_to(self.path).parts[0] in FILES
        )
        if not files:
            return
        path = data.draw(st.sampled_from(files))
        before = path.read_bytes()
        content = bytearray(before)
        if how == "middle bit":
            content[len(content) // 2] ^= 1
        else:
            del content[0 if how == "empty" else len(content) // 2 :]
        path.write_bytes(content)
        done = self.run(f"damaged {path.relative_to(self.path).parts[0]}")
        assert done["code"] in (0, 1), done["error"]
        if done["code"] == 1:
            last = done["error"].splitlines()[-1]
            assert path.name in last or path.parent.name in last, last
            path.write_bytes(before)

    @precondition(lambda self: (self.path / "metrics.jsonl").exists())
    @rule()
    def reported(self) -> None:
        self.counts["report"] += 1
        done = self.runner.order(flags=["runs", "report", self.out])
        assert "Traceback" not in done["error"], done["error"]
        assert done["code"] in (0, 1)

    @precondition(lambda self: any((self.path / "checkpoints").glob("step-*")))
    @rule(action=st.sampled_from((None, "kill@6", "enospc@6", "eio@9")))
    def exported(self, action: str | None) -> None:
        self.counts["export"] += 1
        flags = ["export", self.out, f"{self.out}-export", "--overwrite"]
        done = self.runner.order(flags=flags, **({} if action is None else {"failpoint": action}))
        assert "Traceback" not in done["error"], done["error"]
        assert done["code"] in (0, 1, -9)

    def teardown(self) -> None:
        if not hasattr(self, "out"):
            return
        done = self.run("finished")
        assert done["code"] == 0, done["error"]
        ended = self.runner.order(recorded=self.out)
        assert ended == self.runner.whole
        steps = [row["step"] for row in ended["metrics"] if "grad_norm" in row]
        assert steps == [1, 2, 3, 4, 5], "each step once"


@pytest.fixture(scope="module")
def _runner() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        Runs.runner = Runner(Path(folder))
        with contextlib.closing(Runs.runner):
            yield
        del Runs.runner


@pytest.mark.usefixtures("_runner")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("examples", "steps"),
    [pytest.param(2, 4, id="some orders"), pytest.param(6, 6, id="many orders")],
)
def test_a_run_started_stopped_killed_and_damaged_in_any_order_ends_as_an_undisturbed_one(
    examples: int, steps: int
) -> None:
    Runs.counts.clear()
    checks = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(Runs, settings=checks)
    print(f"run folders: {sum(Runs.counts.values())} commands over {Runs.number} folders: {dict(Runs.counts)}")
