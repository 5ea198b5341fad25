"""Runs that are killed, stopped, or hit by a fault: what is there afterwards is whole, and going on loses nothing."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import sft
from lossbook.cookbook.cli import main
from lossbook.cookbook.run.runs import Run, read_metrics
from lossbook.cookbook.sft import SFTConfig

ROWS = [("red", "rose"), ("blue", "sky"), ("green", "grass"), ("white", "snow"), ("black", "coal")]
STEPS = 8

#: A loss that ends its process, turns NaN or takes its time at a call that the environment names.
LOSSES = """
import os, time
CALLS = []

def loss(logprobs):
    "-logprobs, and what FAULT says at the call that AT says."
    CALLS.append(1)
    fault = os.environ.get("FAULT") if len(CALLS) == int(os.environ.get("AT", 0)) else None
    if fault == "kill":
        os.kill(os.getpid(), 9)
    if fault == "raise":
        raise ZeroDivisionError("of the loss")
    if fault == "hang":
        open("it hangs", "w").close()
        while not os.path.exists("go on"):
            time.sleep(0.02)
    if os.environ.get("FAULT") == "wait":
        time.sleep(0.05)
    return -logprobs * (float("nan") if fault == "nan" else 1.0)
"""

#: Runs the command line and kills it at the n-th file operation of a kind, as Python's audit events report them.
FAILPOINT = """
import os, signal, sys
from lossbook.cookbook.cli import main

def half_a_file(path):
    with open(path, "wb") as file:
        file.write(b"half of it")

def half_a_line(path):
    with open(path, "a") as file:
        file.write('{"loss": 1.2')

POINTS = {
    "half of the weights are written": ("open", ".tmp-", ".safetensors", "r+", 5, half_a_file),
    "all but the manifest is written": ("open", "/.step-", "/MANIFEST.json", "x", 2, None),
    "all is written but not in its place": ("os.rename", "/.step-", "", None, 2, None),
    "it is in its place but not yet durable": ("open", "/checkpoints", "/checkpoints", None, 4, None),
    "half of a line of metrics is written": ("open", "/", "/metrics.jsonl", "a", 7, half_a_line),
    "the adapter is being written": ("open", "/.adapter.tmp-", "/.README.md.tmp", "w", 1, None),
}
event, middle, end, mode, at, before = POINTS[sys.argv.pop(1)]
seen = 0

def kill_there(name, arguments):
    global seen
    if name != event or isinstance(arguments[0], int) or (name == "open" and arguments[1] != mode):
        return
    path = os.fsdecode(arguments[0])
    if middle in path and path.endswith(end):
        seen += 1
        if seen == at:
            if before is not None:
                before(path)
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_there)
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """A working directory with data and the loss above; its module is imported anew."""
    rows = [{"prompt": prompt, "completion": answer} for prompt, answer in ROWS]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "faulty_losses.py").write_text(LOSSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        sys.modules.pop("faulty_losses", None)
        yield
        sys.modules.pop("faulty_losses", None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run records to which nothing happened."""
    with working_in(tmp_path_factory.mktemp("whole")):
        assert main(flags("whole")) == 0
        return recorded("whole")


@pytest.fixture(autouse=True)
def _folder(whole: dict[str, Any], tmp_path: Path) -> Iterator[None]:
    with working_in(tmp_path):
        yield


def flags(out: str, *more: str, steps: int = STEPS) -> list[str]:
    return [
        *("train", "sft", "--data", "train.jsonl", "--eval-data", "train.jsonl", "--out", out),
        *("--loss", "faulty_losses:loss", "--steps", str(steps), "--batch-size", "2", "--learning-rate", "0.01"),
        *("--rank", "2", "--save-every", "2", "--eval-every", "4", "--sample-prompts", "red", "--sample-tokens", "4"),
        *more,
    ]


def resume(out: str) -> int:
    """Go on in this process, with the loss imported anew; the exit code."""
    sys.modules.pop("faulty_losses", None)
    return main(flags(out, "--resume"))


def start(code: str, *words: str, **environment: str) -> subprocess.Popen[str]:
    """A process of its own, in the working directory, on one thread as the tests are."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_killed(code: str, *words: str, **environment: str) -> bool:
    """Whether such a process ends by SIGKILL."""
    process = start(code, *words, **environment)
    process.communicate(timeout=900)
    return process.returncode == -signal.SIGKILL


#: As the installed script does.
COMMAND = "from lossbook.cookbook.cli import command; command()"


def recorded(out: str) -> dict[str, Any]:
    """All that a run has recorded, apart from the speed, and the weights it ended with."""
    path = Path(out)
    rows = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_metrics(path / "metrics.jsonl")]
    files = ("samples.jsonl", "sequences.jsonl", "adapter/adapter_model.safetensors")
    return {"metrics": rows, **{name: (path / name).read_bytes() for name in files}}


def leftovers(out: str) -> list[str]:
    """Files of writers that did not finish."""
    return [path.name for path in Path(out).rglob(".*")]


# --- killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_was_not(whole: dict[str, Any]) -> None:
    assert is_killed(COMMAND, *flags("killed"), FAULT="kill", AT="6")
    assert 0 < read_metrics("killed/metrics.jsonl")[-1]["step"] < STEPS
    assert is_killed(COMMAND, *flags("killed", "--resume"), FAULT="kill", AT="4")
    assert resume("killed") == 0
    assert recorded("killed") == whole
    assert leftovers("killed") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [
        "half of the weights are written",
        "all but the manifest is written",
        "all is written but not in its place",
        "it is in its place but not yet durable",
        "the adapter is being written",
    ],
)
def test_a_run_that_is_killed_while_it_saves_goes_on_from_the_last_whole_checkpoint(
    point: str, whole: dict[str, Any]
) -> None:
    assert is_killed(FAILPOINT, point, *flags("killed"))
    assert resume("killed") == 0
    assert recorded("killed") == whole
    assert leftovers("killed") == []


@pytest.mark.slow
def test_half_a_line_of_metrics_is_dropped(whole: dict[str, Any]) -> None:
    assert is_killed(FAILPOINT, "half of a line of metrics is written", *flags("killed"))
    assert not Path("killed/metrics.jsonl").read_text().endswith("\n")
    assert resume("killed") == 0
    assert recorded("killed") == whole


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_the_run_after_its_step_saved_and_with_the_code_that_shells_expect(
    number: signal.Signals, code: int
) -> None:
    steps = 60
    process = start(COMMAND, *flags("stopped", steps=steps), FAULT="wait")
    while process.poll() is None and not _has_begun("stopped"):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == code, errors
    rows = read_metrics("stopped/metrics.jsonl")
    last, saved = Run(Path("stopped")).last_checkpoint()
    assert rows[-1]["step"] == last < steps
    assert f"stopped after step {last}, saved in {Path(saved).absolute()}; continue with --resume" in errors
    assert not Path("stopped/adapter").exists()
    assert main(flags("stopped", "--resume", steps=last + 2)) == 0
    assert main(flags("whole", steps=last + 2)) == 0
    losses = [
        [row["loss"] for row in read_metrics(f"{one}/metrics.jsonl") if "loss" in row] for one in ("stopped", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_while_a_run_writes_in_its_folder_no_other_does(
    whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(COMMAND, *flags("run"), FAULT="hang", AT="6")
    while process.poll() is None and not Path("it hangs").exists():
        time.sleep(0.02)
    for more in ([], ["--resume"], ["--overwrite"]):
        assert main(flags("run", *more)) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"RunError: run is in use by process {process.pid} on ")
    assert main(["runs", "report", "run"]) == 0
    Path("go on").touch()
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    Path("run/report.html").unlink()
    assert recorded("run") == whole
    assert not [path.name for path in Path("run").iterdir() if path.name in ("run.lock", "in_use.json")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_second_signal_ends_the_process_although_a_call_still_runs(
    number: signal.Signals, code: int, whole: dict[str, Any]
) -> None:
    process = start(COMMAND, *flags("stopped"), FAULT="hang", AT="6")
    assert process.stderr is not None
    seen = []
    while process.poll() is None and not Path("it hangs").exists():
        time.sleep(0.02)
    process.send_signal(number)
    while "stopping after this step" not in (line := process.stderr.readline()):
        seen.append(line)
        assert process.poll() is None, seen
    process.send_signal(number)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == code, errors
    assert "stopped in step" in errors
    assert "Traceback" not in errors
    assert resume("stopped") == 0
    assert recorded("stopped") == whole


def _has_begun(out: str) -> bool:
    path = Path(out) / "metrics.jsonl"
    return path.exists() and path.read_text().count('"step"') > 2


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_turns_nan_ends_the_run_with_its_name_the_step_the_datum_and_the_last_checkpoint(
    whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", "nan")
    monkeypatch.setenv("AT", "6")
    assert main(flags("run")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    rows = read_metrics("run/metrics.jsonl")
    step = rows[-1]["step"] + 1
    saved = Path(f"run/checkpoints/step-{step - 1 - (step - 1) % 2:06d}")
    assert error.startswith(f"NonFiniteLossError: step {step}: loss: ")
    assert "position" in error
    assert "of datum" in error
    assert error.endswith(f"(The last checkpoint is {saved}; --resume continues from it.)")
    assert (saved / "MANIFEST.json").exists()
    assert not Path("run/adapter").exists()
    assert leftovers("run") == []
    monkeypatch.delenv("FAULT")
    assert resume("run") == 0
    assert recorded("run") == whole


def test_before_the_first_checkpoint_an_error_says_that_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAULT", "nan")
    monkeypatch.setenv("AT", "1")
    assert main(flags("run")) == 1
    assert "NonFiniteLossError: step 1: loss: " in (error := capsys.readouterr().err)
    assert "(No checkpoint was saved yet: see --save-every.)" in error


def test_what_a_loss_raises_keeps_its_traceback_and_says_in_which_step_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "raise")
    monkeypatch.setenv("AT", "6")
    with pytest.raises(ZeroDivisionError, match="of the loss") as raised:
        main(flags("run"))
    step = read_metrics("run/metrics.jsonl")[-1]["step"] + 1
    (note,) = raised.value.__notes__
    assert note.startswith(f"This was in step {step}. (The last checkpoint is run/checkpoints/step-0000")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_metrics_that_cannot_be_written_end_the_run_and_the_message_says_what_to_do(
    whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = sft.Batches.at

    def fill_the_disk(self: Any, step: int) -> list[int]:
        if step == 4:
            Path("run/metrics.jsonl").rename("kept.jsonl")
            Path("run/metrics.jsonl").symlink_to("/dev/full")
        return at(self, step)

    monkeypatch.setattr(sft.Batches, "at", fill_the_disk)
    assert main(flags("run")) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("RunError: step 4: run/metrics.jsonl cannot be written: No space left on device. Free some")
    assert "The last checkpoint is run/checkpoints/step-000002" in error
    monkeypatch.setattr(sft.Batches, "at", at)
    Path("run/metrics.jsonl").unlink()
    Path("kept.jsonl").rename("run/metrics.jsonl")
    assert resume("run") == 0
    assert recorded("run") == whole


def test_a_checkpoint_that_does_not_fit_ends_the_run_and_the_one_before_stays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """RLIMIT_FSIZE stands for a full disk: a write beyond it fails in the kernel."""
    assert main(flags("run", steps=2)) == 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        code = main(flags("run", "--resume"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1
    where = Path("run/checkpoints").absolute()
    assert f"CheckpointError: step 4: checkpoint 'step-000004' could not be written to {where}" in error
    assert "The last checkpoint is run/checkpoints/step-000002" in error
    assert leftovers("run") == []


def test_a_folder_that_cannot_be_made_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert main(flags("file/run")) == 1
    assert "RunError: file/run cannot be written: Not a directory" in capsys.readouterr().err


def test_a_run_that_was_killed_after_its_last_checkpoint_ends_without_another_step() -> None:
    config = SFTConfig(data=Path("train.jsonl"), steps=2, rank=2, out=Path("run"))
    sft.main(config)
    weights = Path("run/adapter/adapter_model.safetensors")
    before, rows = weights.read_bytes(), read_metrics("run/metrics.jsonl")
    weights.unlink()
    sft.main(config.model_copy(update={"resume": True}))
    assert weights.read_bytes() == before
    assert read_metrics("run/metrics.jsonl") == rows
