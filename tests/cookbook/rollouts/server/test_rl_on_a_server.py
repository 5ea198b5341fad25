"""`train rl` with rollouts from a server: the same run as with the local sampler, and no run where that cannot be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lossbook.cookbook import rl
from lossbook.cookbook.cli import main as command_line
from lossbook.cookbook.rl import RLConfig
from lossbook.cookbook.rollouts.server.connection import KEY_VARIABLE
from lossbook.cookbook.run.runs import read_metrics, read_rows
from lossbook.datums.errors import SamplerError

from .serving import Server, serving

TIMES = ("tokens_per_second", "sampling_seconds")


def even(answer: str, row: Mapping[str, Any]) -> float:
    """The share of characters with an even code: something that the tiny model does by chance and can learn."""
    return sum(ord(character) % 2 == 0 for character in answer) / max(len(answer), 1)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "rewards_of_a_test", sys.modules[__name__])

    def make(out: str, server: Server | None = None, **changes: Any) -> RLConfig:
        settings: dict[str, Any] = {"task": "gcd", "reward": "rewards_of_a_test:even", "task_size": 16, "held_out": 2}
        settings |= {
            "rank": 4,
            "steps": 3,
            "problems_per_step": 2,
            "group_size": 4,
            "max_tokens": 5,
            "learning_rate": 3e-3,
        }
        if server is not None:
            settings |= {"sampler_url": server.url, "sampler_adapters": tmp_path / "adapters"}
        return RLConfig.model_validate({"out": tmp_path / out, **settings, **changes})

    return make


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def answers(folder: Path) -> list[tuple[Any, ...]]:
    return [(row["step"], row["kind"], row["answer"]) for row in read_rows(folder / "samples.jsonl")]


def assert_equal_up_to_rounding(one: Path, other: Path) -> None:
    """The same answers; numbers within 1e-4 or a thousandth: the server computes each prompt alone, we several at once."""
    assert answers(one) == answers(other)
    for left, right in zip(metrics(one), metrics(other), strict=True):
        assert left.keys() == right.keys()
        for key in left:
            assert left[key] == pytest.approx(right[key], rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("off_policy_steps", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_on_a_server_with_our_seeds_is_the_run_with_the_local_sampler(
    off_policy_steps: int, make: Any, server: Server
) -> None:
    local, served = (
        make("local", off_policy_steps=off_policy_steps),
        make("served", server, off_policy_steps=off_policy_steps),
    )
    rl.main(local)
    rl.main(served)
    assert_equal_up_to_rounding(local.out, served.out)
    assert server.adapters == {}
    assert all(row["grad_norm"] > 0 for row in metrics(served.out) if "reward" in row)


@pytest.mark.slow
def test_on_sglang_the_samples_are_others_and_their_logprobs_are_the_trainers(make: Any) -> None:
    with serving("sglang") as server:
        config = make("run", server, steps=8, group_size=8)
        rl.main(config)
    rows = [row for row in metrics(config.out) if "reward" in row]
    assert all(abs(row["mismatch_k3"]) < 1e-6 for row in rows)
    assert sum(row["reward"] for row in rows[-3:]) > sum(row["reward"] for row in rows[:3])


@pytest.mark.slow
def test_a_run_that_is_resumed_on_another_server_is_the_one_that_went_on(make: Any, server: Server) -> None:
    settings: dict[str, Any] = {"save_every": 1, "held_out": 0}
    whole, stopped = make("whole", server, steps=4, **settings), make("stopped", server, steps=2, **settings)
    rl.main(whole)
    rl.main(stopped)
    with serving() as other:
        changes = {"resume": True, "steps": 4, "sampler_url": other.url}
        rl.main(stopped.model_copy(update=changes))
        assert other.requests
    assert_equal_up_to_rounding(whole.out, stopped.out)


@pytest.mark.slow
def test_the_run_ends_before_its_first_step_where_the_server_gives_other_logprobs(make: Any, server: Server) -> None:
    def colder(completion: dict[str, Any]) -> dict[str, Any]:
        for choice in completion["choices"]:
            choice["logprobs"]["token_logprobs"] = [1.1 * one for one in choice["logprobs"]["token_logprobs"]]
        return completion

    server.spoil = colder
    config = make("run", server)
    with pytest.raises(SamplerError, match=r"give other logprobs to the same .*--sampler-bound"):
        rl.main(config)
    assert not (config.out / "metrics.jsonl").exists()


def test_a_server_that_goes_away_ends_the_step_in_one_line_that_says_how_to_resume(
    make: Any, server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make("run")
    flags = [
        "--task",
        "gcd",
        "--reward",
        "rewards_of_a_test:even",
        "--task-size",
        "4",
        "--held-out",
        "0",
        "--steps",
        "2",
    ]
    flags += ["--problems-per-step", "1", "--group-size", "2", "--max-tokens", "2", "--save-every", "1", "--rank", "2"]
    flags += [
        "--sampler-url",
        server.url,
        "--sampler-adapters",
        str(tmp_path / "adapters"),
        "--out",
        str(tmp_path / "run"),
    ]
    seen: list[int] = []

    def gone(completion: dict[str, Any]) -> Any:
        updates = sum("load_lora" in path for path, _ in server.requests)
        seen.append(updates)
        return completion if updates < 3 else {"choices": []}  # of noise, of step 1, of step 2

    server.spoil = gone
    assert command_line(["train", "rl", *flags]) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "Error" in one]
    assert line.startswith("SamplerError: step 2: ")
    assert "step-000001; --resume continues from it" in line


@pytest.mark.slow
def test_the_key_of_the_server_is_in_no_file_of_the_run(
    make: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame-and-more")
    with serving(key="sesame-and-more") as server:
        rl.main(make("run", server, steps=1, held_out=0))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sampler_url"] == server.url
    assert not [path for path in files if b"sesame" in path.read_bytes()]
    assert "sesame" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"all_weights": True, "rank": 16},
            "a server loads adapters while it runs, but whole weights only when it starts",
        ),
        ({"sampler_adapters": None}, "--sampler-url needs --sampler-adapters"),
        ({"sampler_url": None}, "sampler_adapters is for --sampler-url only"),
        ({"sampler_url": "http://me:secret-word@host"}, "must not hold a login"),
        ({"sampler_bound": 0.0}, "greater than 0"),
        ({"sampling_workers": 1, "workers": 1}, "choose one of --sampling-workers and --sampler-url"),
        ({"sampling_workers": 1}, "give --workers too"),
    ],
)
def test_settings_that_a_server_cannot_serve_are_refused(changes: dict[str, Any], message: str, make: Any) -> None:
    with pytest.raises(ValidationError, match=message) as raised:
        make("run", **{"sampler_url": "http://localhost:1", "sampler_adapters": "adapters", **changes})
    assert "secret-word" not in str(raised.value)
