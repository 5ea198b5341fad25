"""`--sweep`: every combination is a run of its own, as its command alone would train it; checked before, named where it fails."""

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
from torch import Tensor

from lossbook.cookbook.cli import main
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.settings.embed import EmbedConfig
from lossbook.cookbook.settings.preferences import DPOConfig
from lossbook.cookbook.settings.sft import SFTConfig
from lossbook.cookbook.sweeps.grid import combinations, grid_of, take_sweep
from lossbook.datums.errors import ConfigError

Captured = pytest.CaptureFixture[str]
FLAGS = ["--data", "rows.jsonl", "--rank", "1", "--batch-size", "2", "--steps", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "rows.jsonl").write_text('{"prompt": "2 + 3 = ", "completion": "5"}\n' * 4)
    return tmp_path


def record(folder: str = "sweep") -> dict[str, Any]:
    return json.loads((Path(folder) / "sweep.json").read_text())


def states() -> dict[str, str]:
    return {run["folder"]: run["state"] for run in record()["runs"]}


def numbers(folder: str) -> list[dict[str, Any]]:
    """Metrics without the time."""
    return [
        {k: v for k, v in row.items() if k != "tokens_per_second"} for row in read_metrics(f"{folder}/metrics.jsonl")
    ]


@pytest.mark.slow
def test_every_combination_is_the_run_that_its_command_alone_gives(capsys: Captured) -> None:
    words = ["--sweep", "loss=cross_entropy,focal", "seed=3", "--out", "sweep"]
    assert main(["train", "sft", *FLAGS, *words]) == 0
    shown = capsys.readouterr().out
    assert states() == {f"loss={loss},seed=3": "finished" for loss in ("cross_entropy", "focal")}
    assert record()["command"] == ["train", "sft"]
    assert record()["sweep"] == {"loss": ["cross_entropy", "focal"], "seed": [3]}
    assert "loss=focal" in shown
    assert "lossbook runs compare sweep" in shown
    assert main(["train", "sft", *FLAGS, "--loss", "focal", "--seed", "3", "--out", "alone"]) == 0
    assert numbers("alone") == numbers("sweep/loss=focal,seed=3")
    assert numbers("alone") != numbers("sweep/loss=cross_entropy,seed=3")
    before = (Path("sweep") / "loss=focal,seed=3" / "metrics.jsonl").stat().st_mtime_ns
    more = ["--sweep", "loss=cross_entropy,focal", "seed=3,4", "--out", "sweep", "--resume"]
    assert main(["train", "sft", *FLAGS, *more]) == 0  # a seed is added to what is there
    assert [*states().values()] == ["finished"] * 4
    assert (Path("sweep") / "loss=focal,seed=3" / "metrics.jsonl").stat().st_mtime_ns == before
    capsys.readouterr()
    assert main(["runs", "compare", "sweep", "--json", "--keys", "nll"]) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    assert [(group["label"], group["seeds"]) for group in groups] == [
        ("loss=cross_entropy", [3, 4]),
        ("loss=focal", [3, 4]),
    ]
    assert main(["train", "sft", *FLAGS, *words]) == 1
    assert "sweep is not empty. Choose --resume" in capsys.readouterr().err
    assert main(["train", "sft", *FLAGS, *words, "--steps", "2", "--resume"]) == 0  # longer
    assert [row["step"] for row in numbers("sweep/loss=focal,seed=3")] == [1, 2]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--sweep", "loss=cross_entropy,focal,focl"],
            2,
            "loss=focl: no loss is registered as 'focl'. Did you mean 'focal'?",
        ),
        (["--sweep", "sede=0,1"], 2, "no setting is called so. Did you mean 'seed'?"),
        (["--sweep", "seed=0,x"], 2, "seed takes a whole number of at least 0, not 'x'"),
        (["--sweep", "rank=1,0"], 2, "rank takes a whole number of at least 1, not 0"),
        (["--sweep", "loss=cross_entropy,dpo"], 1, "loss=dpo: dpo compares pairs"),
        (["--sweep", "loss_config.gama=1,2", "--loss", "focal"], 2, "loss_config.gama=1: focal has no setting 'gama'"),
        (["--sweep", "data=rows.jsonl,gone.jsonl"], 2, "--data and --sweep both give data"),
        (["--sweep", "seed=0,1,1"], 2, "a value is given twice"),
        (["--sweep", "seed="], 2, "a value is missing"),
        (["--sweep", "seed"], 2, "write NAME=VALUE"),
        (["--sweep"], 2, "--sweep needs settings and values"),
        (["--sweep", "out=a,b"], 2, "the same for all runs of a sweep"),
        (["--sweep", "rank.x=1"], 2, "rank has no parts of its own"),
        (["--sweep", "schedule=constant,linear"], 2, "schedule=linear: schedule linear falls to 0"),
        (["--sweep", "seed=0,1", "--jobs", "0"], 2, "--jobs must be at least 1"),
        (["--jobs", "2"], 2, "--jobs is for --sweep"),
        (["--sweep", "seed=0,1", "--resume"], 1, "holds no sweep"),
    ],
)
def test_a_sweep_is_refused_before_its_first_run(words: list[str], code: int, message: str, capsys: Captured) -> None:
    assert main(["train", "sft", *FLAGS, "--out", "sweep", *words]) == code
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in shown
    assert not Path("sweep").exists()


def test_a_run_that_fails_is_named_at_the_end_and_the_others_are_trained(capsys: Captured) -> None:
    words = ["--sweep", "max_length=2,64", "--out", "sweep"]
    assert main(["train", "sft", *FLAGS, *words]) == 1
    assert states() == {"max_length=2": "failed", "max_length=64": "finished"}
    assert "TruncationError" in record()["runs"][0]["error"]
    shown = capsys.readouterr()
    assert "failed: max_length=2: TruncationError" in shown.err.splitlines()[-2]
    assert "1 of 2 runs failed; --resume tries them again" in shown.err


def stops_once(logprobs: Tensor) -> Tensor:
    """A loss in whose first call somebody presses Ctrl-C."""
    flag = Path("pressed")
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGINT)
    return -logprobs


@pytest.mark.slow
def test_ctrl_c_saves_the_run_and_ends_the_sweep_which_goes_on_with_resume(here: Path, capsys: Captured) -> None:
    (here / "my_stopping_loss.py").write_text(Path(__file__).read_text(encoding="utf-8"))
    words = ["--loss", "my_stopping_loss:stops_once", "--steps", "2", "--sweep", "seed=0,1", "--out", "sweep"]
    try:
        assert main(["train", "sft", *FLAGS, *words]) == 130
        assert states() == {"seed=0": "interrupted", "seed=1": "waiting"}
        assert "--resume goes on with it" in capsys.readouterr().err
        assert main(["train", "sft", *FLAGS, *words, "--resume"]) == 0
        assert [*states().values()] == ["finished"] * 2
        assert [row["step"] for row in numbers("sweep/seed=0")] == [1, 2]
    finally:
        sys.modules.pop("my_stopping_loss", None)


def test_values_have_the_types_of_their_settings() -> None:
    grid = grid_of(["learning-rate=1e-3,1", "loss_config.beta=0.1,1", "loss_config.divergence=js"], DPOConfig)
    assert grid == {"learning_rate": [1e-3, 1.0], "loss_config.beta": [0.1, 1], "loss_config.divergence": ["js"]}
    assert grid_of(["loss=trl:grpo,5"], SFTConfig) == {"loss": ["trl:grpo", "5"]}
    assert grid_of(["all_weights=true,False"], SFTConfig) == {"all_weights": [True, False]}
    assert grid_of(["max_length=none,64"], SFTConfig) == {"max_length": [None, 64]}
    assert grid_of(['lora_targets=q_proj,["q_proj","v_proj"]'], SFTConfig) == {
        "lora_targets": [("q_proj",), ("q_proj", "v_proj")]
    }
    assert grid_of(["matryoshka_dimensions=[64,128],[64]"], EmbedConfig) == {
        "matryoshka_dimensions": [(64, 128), (64,)]
    }
    assert grid_of(['loss_config={"beta":0.1},{"beta":0.5}'], DPOConfig) == {
        "loss_config": [{"beta": 0.1}, {"beta": 0.5}]
    }
    assert [*combinations({"a": [1, 2], "b": [3, 4]})] == [{"a": a, "b": b} for a in (1, 2) for b in (3, 4)]


def test_the_words_of_a_sweep_end_at_the_next_flag() -> None:
    words = ["--steps", "3", "--sweep", "a=1", "b=2", "--rank=2", "--jobs", "2", "--out", "x", "--sweep=c=3"]
    assert take_sweep(words) == (["--steps", "3", "--rank=2", "--out", "x"], ["a=1", "b=2", "c=3"], "2")
    with pytest.raises(ConfigError, match="--jobs is for --sweep"):
        take_sweep(["--jobs=2"])


@pytest.mark.slow
def test_runs_at_once_are_those_in_turn_and_a_signal_ends_them_all(here: Path, capsys: Captured) -> None:
    words = ["--sweep", "max_length=2,64"]
    assert main(["train", "sft", *FLAGS, *words, "--out", "sweep", "--jobs", "2"]) == 1
    assert states() == {"max_length=2": "failed", "max_length=64": "finished"}
    assert "TruncationError" in record()["runs"][0]["error"]
    assert "TruncationError" in (here / "sweep" / "logs" / "max_length=2.txt").read_text()
    assert main(["train", "sft", *FLAGS, "--max-length", "64", "--out", "alone"]) == 0
    assert numbers("alone") == numbers("sweep/max_length=64")
    endless = ["train", "sft", *FLAGS[:-1], "100000", "--sweep", "seed=0,1,2", "--out", "endless", "--jobs", "2"]
    code = "import sys; from lossbook.cookbook.cli import command; command()"
    process = subprocess.Popen([sys.executable, "-c", code, *endless], env={**os.environ, "OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 240
    while not all((here / "endless" / f"seed={seed}" / "metrics.jsonl").exists() for seed in (0, 1)):
        assert time.monotonic() < end, "the runs did not begin"
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(240) == 130
    assert [run["state"] for run in record("endless")["runs"]] == ["interrupted", "interrupted", "waiting"]
    assert [*(here / "endless" / "seed=0" / "checkpoints").glob("step-*")]
