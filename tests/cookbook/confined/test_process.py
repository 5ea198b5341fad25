"""The confined process starts once, comes back when it was ended, and ends with the run."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lossbook.cookbook.confined.process import Confined, Failure, confined
from lossbook.cookbook.environments.math_answers import MathReward
from lossbook.cookbook.tasks.reasoning_gym_tasks import Task
from lossbook.datums.errors import RewardError

INSIDE = Path(__file__).resolve().parents[3] / "cookbook" / "confined" / "inside"


def children() -> set[int]:
    """The confined processes that this one started and has not waited for."""
    return {pid for pid in started_under(os.getpid()) if is_confined(pid)}


def started_by(action: Callable[[], object]) -> int:
    """The confined process that an action starts."""
    before = children()
    action()
    return min(children() - before)  # its worker came later


def is_confined(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline")
    return command.exists() and b"inside.serve" in command.read_bytes()


def wait_for_end(*pids: int) -> None:
    """Until none of the processes runs."""
    deadline = time.monotonic() + 120
    while any(is_confined(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def module(folder: Path, text: str) -> Confined:
    """A confined reward function of a module with this text."""
    (folder / "a_reward.py").write_text(textwrap.dedent(text))
    return Confined("function", {"path": "a_reward:reward"}, (str(folder),))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_was_killed_while_idle_is_started_again() -> None:
    confined("mathematics").end()
    reward = MathReward()
    pid = started_by(lambda: reward("0.25", {"answer": "1/4"}))
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, with its pipes, and nobody has asked how
    assert reward("$\\frac{2}{8}$", {"answer": "1/4"}) == 1
    assert reward.failures.count == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rewards_and_tasks_share_a_process_of_their_kind() -> None:
    MathReward()("0.25", {"answer": "1/4"})
    Task("letter_counting").held_out(1)
    before = children()
    assert MathReward()("$\\frac{2}{8}$", {"answer": "1/4"}) == 1
    Task("leg_counting").held_out(1)
    assert children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_is_killed_in_the_middle_costs_one_answer(tmp_path: Path) -> None:
    process = module(tmp_path, "import time\ndef reward(answer, row): return time.sleep(len(answer)) or 1.0")
    pid = started_by(lambda: process.score({}, ""))
    with ThreadPoolExecutor(1) as thread:
        scoring = thread.submit(process.score, {}, "." * 600)
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        assert scoring.result(60) == Failure("the whole process ended", is_limit=True)
    assert process.score({}, "") == 1
    process.end()
    process.end()
    assert process.score({}, "") == 1
    process.end()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(answer, row): return 1.0", "does not start: AttributeError: .* has no attribute 'reward'"),
        ("import no_such_module", "does not start: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('enough')", "does not start: SystemExit: enough"),
        ("import os; os._exit(3)", "does not start: it ended with exit code 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RewardError, match=f"the confined process of reward a_reward:reward {message}"):
        module(tmp_path, text).score({}, "a")


def test_what_a_module_prints_does_not_disturb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = module(
        tmp_path,
        """
        import os, sys
        print('{"value": 7}', flush=True)
        os.write(1, b'{"value": 8}' * 10_000)
        def reward(answer, row):
            print('{"score": 7}', flush=True)
            sys.stderr.write("noise")
            return len(answer) + row["more"]
        """,
    )
    assert [process.score({"more": 0.5}, text) for text in ("", "ab", "é\u2028\n")] == [0.5, 2.5, 3.5]
    assert capfd.readouterr() == ("", "")
    process.end()


def test_scores_keep_every_bit(tmp_path: Path) -> None:
    process = module(tmp_path, "def reward(answer, row): return float.fromhex(answer)")
    numbers = [0.1, 1 / 3, -0.0, 5e-324, 1.7976931348623157e308]
    assert [process.score({}, number.hex()) for number in numbers] == numbers
    process.end()


def test_what_is_no_number_is_a_failure(tmp_path: Path) -> None:
    process = module(tmp_path, "def reward(answer, row): return {'none': None, 'text': '1.0', 'list': [1]}[answer]")
    for answer in ("none", "text", "list"):
        failure = process.score({}, answer)
        assert isinstance(failure, Failure)
        assert failure.text.startswith("TypeError")
        assert not failure.is_limit
    process.end()


PROGRAM = """
    import os, signal, sys, time
    from lossbook.cookbook.confined.process import Confined
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests in the background
    process = Confined("function", {{"path": "a_reward:reward"}}, ({folder!r},))
    process.score({{}}, "")
    print("up", flush=True)
    {then}
"""
#: How a run ends, and with which exit code.
ENDS = {
    "by Ctrl-C while an answer is scored": ("process.score({}, 'long')", signal.SIGINT, -signal.SIGINT),
    "by itself": ("pass", None, 0),
    "by Ctrl-C at a loop": ("while True: process.score({}, '')", signal.SIGINT, -signal.SIGINT),
    "by being killed": ("time.sleep(600)", signal.SIGKILL, -signal.SIGKILL),
    "by being killed while an answer is scored": ("process.score({}, 'long')", signal.SIGKILL, -signal.SIGKILL),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("then", "number", "code"),
    [pytest.param(*end, id=name, marks=[] if "scored" in name else [pytest.mark.slow]) for name, end in ENDS.items()],
)
def test_nothing_is_left_when_the_run_ends(tmp_path: Path, then: str, number: int | None, code: int) -> None:
    (tmp_path / "a_reward.py").write_text(
        "import time\ndef reward(answer, row):\n    time.sleep(600 if answer else 0)\n    return 1.0\n"
    )
    script = textwrap.dedent(PROGRAM).format(folder=str(tmp_path), then=then)
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    family = set(started_under(run.pid))
    assert family or number is None
    if number is not None:
        time.sleep(0.2)
        os.killpg(run.pid, number)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == code
    assert errors.count("Traceback") == (number == signal.SIGINT)  # of the run itself, not of the process
    assert "inside/" not in errors
    wait_for_end(*family)


def started_under(pid: int) -> list[int]:
    """The processes below one."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    below = [int(child) for child in listed.split()]
    return [*below, *(deeper for child in below for deeper in started_under(child))]


def test_what_runs_inside_imports_the_standard_library_and_itself_only() -> None:
    """So that it starts fast, and nothing of lossbook is between the walls."""
    libraries = {"reasoning_gym", "math_verify", "latex2sympy2_extended"}  # named where they are called
    for path in INSIDE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                names = [] if node.level else [node.module or ""]
            else:
                continue
            assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | libraries, path
