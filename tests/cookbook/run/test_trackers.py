"""Trackers: they get what metrics.jsonl gets, a resumed run goes on in the same place, and none of them can stop a run."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import sft
from lossbook.cookbook.cli import main
from lossbook.cookbook.redaction import REDACTED, redacted
from lossbook.cookbook.run import trackers
from lossbook.cookbook.run.configs import resolved_settings
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.run.trackers import PATIENCE, Place, Trackers, check_trackers
from lossbook.cookbook.settings.base import RecipeConfig
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import MissingExtraError


class Remembering:
    """A tracker that keeps what it gets, and fails at the steps in `broken`."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.tried: list[int] = []
        self.broken = broken
        self.succeeded: bool | None = None
        self.ids: list[int] = []
        self.opened: list[tuple[Place, Mapping[str, Any], int]] = []

    def open(self, place: Place, settings: Mapping[str, Any], step: int, ids: dict[str, Any]) -> Remembering:
        self.opened.append((place, settings, step))
        self.ids.append(ids.setdefault("wandb", len(self.opened)))
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tried.append(step)
        if step in self.broken:
            raise ConnectionError("the server is down")
        self.rows.append((step, dict(metrics)))

    def close(self, succeeded: bool) -> None:
        self.succeeded = succeeded
        if self.broken:
            raise ConnectionError("the server is still down")


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Remembering:
    """What `log_to=("wandb",)` opens in these tests."""
    fake = Remembering()
    monkeypatch.setitem(trackers.TRACKERS, "wandb", fake.open)
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr("lossbook.cookbook.loop.check_trackers", lambda names: None)
    return fake


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A short run of the tiny model."""
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in ("ab", "cd", "ef")))

    def make(out: str = "run", **changes: Any) -> SFTConfig:
        settings = {"data": data, "steps": 4, "batch_size": 2, "learning_rate": 1e-2, "rank": 2}
        return SFTConfig(**{**settings, "out": tmp_path / out, **changes})

    return make


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard itself reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_tracker_gets_what_metrics_jsonl_gets_and_the_settings_with_the_resolved_loss(
    make: Any, tracker: Remembering
) -> None:
    config = make(log_to=("wandb",), loss="focal")
    sft.main(config)
    rows = read_metrics(config.out / "metrics.jsonl")
    assert [{**numbers, "step": step} for step, numbers in tracker.rows] == rows
    ((place, settings, step),) = tracker.opened
    assert (place, step, tracker.succeeded) == (Place(config.out), 0, True)
    assert settings["loss"] == "focal"
    assert settings["resolved_loss"] == {
        "name": "focal",
        "per": "token",
        "gamma": 2.0,
        "reduction": "token-mean",
        "norm_length": None,
        "weights": "weights",
    }


def test_a_resumed_run_tells_the_tracker_the_step_it_goes_on_from(make: Any, tracker: Remembering) -> None:
    sft.main(make(steps=2, log_to=("wandb",)))
    sft.main(make(steps=4, log_to=("wandb",), resume=True))
    assert [step for _, _, step in tracker.opened] == [0, 2]
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4]


def test_a_tracker_that_fails_is_warned_about_once_and_changes_no_number(make: Any, tracker: Remembering) -> None:
    plain, config = make("plain"), make(log_to=("wandb",))
    sft.main(plain)
    tracker.broken = (2, 3)
    with pytest.warns(RuntimeWarning, match="wandb failed") as warned:
        sft.main(config)
    messages = [str(warning.message) for warning in warned]
    assert messages == [
        "wandb failed (ConnectionError: the server is down): from step 2 on it may lack numbers. Training goes on; "
        "metrics.jsonl has all",
        "wandb failed (ConnectionError: the server is still down): its end may be missing there. Training goes on; "
        "metrics.jsonl has all",
    ]
    assert [step for step, _ in tracker.rows] == [1, 4]
    losses = [[row["loss"] for row in read_metrics(one.out / "metrics.jsonl")] for one in (plain, config)]
    assert losses[0] == losses[1]


def test_the_parts_of_a_mixture_are_among_the_settings_that_a_tracker_gets() -> None:
    resolved = resolved_settings(RecipeConfig(loss="prime:default"))["resolved_loss"]
    assert [(part["factor"], part["name"], part["reduction"]) for part in resolved["parts"]] == [
        (1.0, "dppo", "token-mean"),
        (0.002, "sampler_kl", "token-mean"),
    ]


def test_a_tracker_that_fails_again_and_again_is_left_alone(tmp_path: Path, tracker: Remembering) -> None:
    tracker.broken = tuple(range(100))
    opened = Trackers(["wandb"], Place(tmp_path)).__enter__()
    with pytest.warns(RuntimeWarning, match="from step 0 on") as warned:
        opened.log(0, {"loss": 1.0})
    for step in range(1, 10):
        opened.log(step, {"loss": 1.0})
    opened.__exit__(None, None, None)
    assert tracker.tried == list(range(PATIENCE))
    assert len(warned) == 1
    assert tracker.succeeded is None


def test_a_tracker_that_cannot_be_opened_is_warned_about_and_the_others_go_on(
    tmp_path: Path, tracker: Remembering, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        raise OSError("no space left")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", refuse)
    with pytest.warns(RuntimeWarning, match=r"mlflow failed \(OSError: no space left\)"):
        opened = Trackers(["mlflow", "wandb"], Place(tmp_path)).__enter__()
    opened.log(1, {"loss": 1.0})
    assert tracker.rows == [(1, {"loss": 1.0})]


def test_a_run_that_ends_in_an_error_is_closed_as_failed(tmp_path: Path, tracker: Remembering) -> None:
    with pytest.raises(ZeroDivisionError), Trackers(["wandb"], Place(tmp_path)):
        raise ZeroDivisionError
    assert tracker.succeeded is False


def test_a_tracker_that_is_not_installed_ends_the_run_before_anything_is_made(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    config = make(log_to=("tensorboard", "mlflow"))
    with pytest.raises(MissingExtraError, match=r"^log_to 'mlflow' needs mlflow: pip install 'lossbook\[mlflow\]'$"):
        sft.main(config)
    assert not config.out.exists()


def test_a_folder_of_the_trackers_name_does_not_pass_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()
    with pytest.raises(MissingExtraError, match=r"pip install 'lossbook\[wandb\]'"):
        check_trackers(["wandb"])
    sys.modules.pop("wandb", None)


def test_a_tracker_gets_the_project_and_the_name_that_were_given(make: Any, tracker: Remembering) -> None:
    config = make(log_to=("wandb",), tracker_project="losses", run_name="first try")
    sft.main(config)
    assert tracker.opened[0][0] == Place(config.out, "losses", "first try")
    assert (Place(config.out).run_name, tracker.opened[0][0].run_name) == ("run", "first try")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tracker_project": "a"}, "tracker_project is for --log-to only"),
        ({"run_name": "a"}, "run_name is for --log-to only"),
        ({"log_to": ("tensorboard",), "tracker_project": "a"}, "tensorboard has no projects"),
        ({"log_to": ("tensorboard",), "run_name": "../a"}, "without slashes"),
        ({"log_to": ("tensorboard",), "run_name": ".."}, "run_name is a name"),
        ({"log_to": ("wandb",), "tracker_project": "a\nb"}, "tracker_project is a name on one line"),
    ],
)
def test_names_that_no_tracker_would_use_or_that_are_none_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecipeConfig(**flags)


def test_under_another_name_a_resumed_run_is_a_new_run_in_the_tracker(tmp_path: Path, tracker: Remembering) -> None:
    other = Place(tmp_path, project="b")
    for place in (Place(tmp_path), Place(tmp_path), other, other, Place(tmp_path)):
        with Trackers(["wandb", "tensorboard"], place) as opened:
            opened.log(1, {"loss": 1.0})
    assert tracker.ids == [1, 1, 3, 3, 5]


def test_tensorboard_has_a_folder_of_the_runs_name(tmp_path: Path) -> None:
    with Trackers(["tensorboard"], Place(tmp_path, name="b")) as opened:
        opened.log(1, {"loss": 1.0})
    assert len(list((tmp_path / "tensorboard" / "b").iterdir())) == 1


def test_a_misspelt_tracker_is_a_mistake_in_the_call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "sft", "--task", "x", "--out", str(tmp_path / "run"), "--log-to", "tensorbord"]) == 2
    assert "tensorboard" in capsys.readouterr().err


def test_tensorboard_reads_every_step_once_and_those_made_again_as_they_were_made_last(tmp_path: Path) -> None:
    with Trackers(["tensorboard"], Place(tmp_path), {"seed": 1}) as opened:
        for step in (1, 2, 3, 4):
            opened.log(step, {"loss": 1.0 / step})
    with Trackers(["tensorboard"], Place(tmp_path), {"seed": 1}, step=2) as opened:
        for step in (3, 4, 5):
            opened.log(step, {"loss": 10.0 * step, "rate": math.nan})
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 0.5), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert all(math.isnan(value) for _, value in scalars(tmp_path, "rate"))


def test_overwriting_a_run_removes_what_its_trackers_kept(make: Any) -> None:
    sft.main(make(log_to=("tensorboard",)))
    config = make(steps=2, log_to=("tensorboard",), overwrite=True)
    sft.main(config)
    assert [step for step, _ in scalars(config.out, "loss")] == [1, 2]


def test_no_secret_reaches_a_tracker(tmp_path: Path, tracker: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "a-secret-value")
    settings = {"model": "http://me:hunter2@host/a-secret-value", "list": [{"token": "hf_" + "a" * 30}], "rank": 8}
    with Trackers(["wandb"], Place(tmp_path), settings):
        pass
    ((_, sent, _),) = tracker.opened
    assert sent == {"model": f"http://{REDACTED}@host/{REDACTED}", "list": [{"token": REDACTED}], "rank": 8}


@pytest.mark.parametrize("text", ["max_tokens", "https://huggingface.co/a/b", "sk-learn", "hf_model", ""])
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted({"value": text, "number": 1.5, "nothing": None}) == {"value": text, "number": 1.5, "nothing": None}


# --- the packages themselves, where they are installed ----------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, and nothing of the user's own configuration."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("SOME_API_KEY", SECRET)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    path.mkdir()
    return path


def files_with_the_secret(folder: Path) -> list[str]:
    """Of all that was written, in the run's folder and beside it."""
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if SECRET.encode() in path.read_bytes()]


def test_tensorboards_files_hold_no_secret(folder: Path) -> None:
    log_twice("tensorboard", folder)
    assert files_with_the_secret(folder) == []


SECRET = "a-secret-that-must-stay-here"


def log_twice(name: str, folder: Path) -> None:
    """A run of four steps, resumed after the second; a setting holds a secret of the environment."""
    for start in (0, 2):
        with Trackers([name], Place(folder), {"seed": 1, "model": f"http://host/{SECRET}"}, start) as opened:
            for step in range(start + 1, start + 5):
                opened.log(step, {"loss": float(100 * start + step)})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_without_a_key_asks_nothing_and_keeps_one_run_in_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb.sdk")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked for a login"))
    log_twice("wandb", folder)
    runs = [path.name.rsplit("-", 1)[-1] for path in (folder / "wandb").glob("offline-run-*")]
    assert runs == [json.loads((folder / "trackers.json").read_text())["wandb"]] * 2
    assert files_with_the_secret(folder) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_one_run_with_all_steps(folder: Path) -> None:
    pytest.importorskip("mlflow.tracking")
    from mlflow import MlflowClient

    log_twice("mlflow", folder)
    with Trackers(["mlflow"], Place(folder, "another", "named")):
        pass
    client = MlflowClient()
    (named,) = client.search_runs([client.get_experiment_by_name("another").experiment_id])
    assert named.info.run_name == "named"
    (run,) = client.search_runs([client.get_experiment_by_name("lossbook").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["seed"]) == ("run", "FINISHED", "1")
    assert files_with_the_secret(folder) == []
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted((one.step, one.value) for one in history) == [
        *((1, 1.0), (2, 2.0), (3, 3.0), (3, 203.0), (4, 4.0), (4, 204.0), (5, 205.0), (6, 206.0))
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trackio_keeps_one_run_with_all_steps(folder: Path) -> None:
    pytest.importorskip("trackio.run")
    import sqlite3

    log_twice("trackio", folder)
    with sqlite3.connect(folder.parent / "trackio" / "lossbook.db") as database:
        rows = database.execute("select run_name, step from metrics order by step").fetchall()
    assert files_with_the_secret(folder) == []
    name = json.loads((folder / "trackers.json").read_text())["trackio"]
    assert rows == [(name, step) for step in (1, 2, 3, 3, 4, 4, 5, 6)]
