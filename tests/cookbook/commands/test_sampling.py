"""`lossbook sample` and `lossbook chat`: prompts as in training, the same answers under a seed, and lines that say what is wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.talk import weights as loaded
from lossbook.cookbook.talk.conversation import Conversation
from lossbook.cookbook.talk.weights import load_weights
from lossbook.datums.types import SamplingParams

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that know one sum: `text` by rows of text, `chat` by messages."""
    folder = tmp_path_factory.mktemp("runs")
    message = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    rows = {"text": {"prompt": "2 + 3 = ", "completion": "5"}, "chat": {"messages": message}}
    for name, row in rows.items():
        data = folder / f"{name}.jsonl"
        data.write_text(json.dumps(row) + "\n")
        flags = ["--steps", "15", "--all-weights", "--learning-rate", "1e-2", "--out", str(folder / name)]
        assert main(["train", "sft", "--data", str(data), *flags]) == 0
    return folder


def test_a_run_answers_as_it_was_trained_from_arguments_files_and_lines(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    capsys.readouterr()
    assert main(["sample", str(folder / "text"), "2 + 3 = ", "--temperature", "0", "--max-tokens", "8"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, "plain text" in shown.err) == ("5\n", True)
    assert main(["sample", str(folder / "chat"), "2 + 3?", "--temperature", "0", "--max-tokens", "8"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, "turns of the chat template" in shown.err) == ("5\n", True)
    file = str(folder / "chat.jsonl")  # its answer is left out
    assert main(["sample", str(folder / "chat"), "--file", file, "--temperature", "0", "--json"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["text"], row["stop_reason"], len(row["prompt"])) == ("5", "stop", 1)
    assert -1.0 < row["logprob"] <= 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("2 + 3 = \n\n2 + 3 = \n"))
    assert main(["sample", str(folder / "text"), "--temperature", "0", "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out == "> 2 + 3 = \n5\n\n> 2 + 3 = \n5\n"


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(capsys: Captured) -> None:
    shown = []
    for seed in ("1", "1", "2"):
        words = ["sample", "tiny", "hello", "--seed", seed, "--num-samples", "3", "--max-tokens", "9", "--json"]
        assert main(words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert len(shown[0].splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sample", "tiny", "hi", "--top-p", "2"], 2, "--top-p must be above 0"),
        (["sample", "tiny", "hi", "--raw", "--chat-template"], 2, "choose one of --raw and --chat-template"),
        (["sample", "tiny", "hi", "--file", "x.txt"], 2, "not both"),
        (["sample", "tiny", "hi", "--raw", "--system", "Be brief."], 2, "need the chat template"),
        (["sample", "runs/nowhere", "hi"], 1, "there is no folder runs/nowhere"),
        (["sample", "tiny", "hi " * 9999], 1, "leaves no room in the context"),
        (["sample", "tiny", "--file", "nowhere.txt"], 1, "nowhere.txt cannot be read"),
        (["sample", "tiny-encoder", "hi"], 1, "tiny-encoder"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(words: list[str], code: int, message: str, capsys: Captured) -> None:
    assert main(words) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line
    assert "Error: " in line


def test_the_adapter_of_a_run_is_answered_with_the_run(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "config.json").write_text('{"model": "tiny"}')
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    assert main(["sample", str(tmp_path / "run" / "adapter"), "hi"]) == 1
    assert f"give its run, {tmp_path / 'run'}" in capsys.readouterr().err


def chat(lines: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured, *words: str) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert main(["chat", *words]) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_a_conversation_in_a_pipe(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    greedy = (str(folder / "chat"), "--temperature", "0", "--max-tokens", "8")
    lines = "2 + 3?\n/reset\n2 + 3?\n/nonsense\n/system\n2 + 3?\n/quit\n2 + 3?\n"
    said, remarks = chat(lines, monkeypatch, capsys, *greedy)
    assert said == "5\n5\n5\n"  # nothing after /quit
    assert "there is no command /nonsense" in remarks
    assert "forgotten" in remarks
    assert chat("", monkeypatch, capsys, *greedy)[0] == ""
    assert "nothing was said yet" in chat("/regenerate\n", monkeypatch, capsys, *greedy)[1]


def test_a_conversation_that_fills_the_context_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    long = "word " * 900
    said, remarks = chat(f"hi\n{long}\n{long}\nhi\n", monkeypatch, capsys, "tiny", "--max-tokens", "2")
    assert "too long: with this the conversation fills the model's context" in remarks
    assert "the 1 earlier turns stay" in remarks
    assert len(said.splitlines()) >= 2


def test_a_system_message_begins_anew_and_needs_a_template(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    greedy = ("tiny", "--temperature", "0", "--max-tokens", "2", "--raw")
    assert "needs the chat template" in chat("/system Be brief.\n", monkeypatch, capsys, *greedy)[1]


def test_an_answer_comes_token_by_token_is_kept_and_can_be_given_again() -> None:
    weights = load_weights("tiny")
    talk = Conversation(weights, SamplingParams(max_tokens=12, seed=3))
    pieces: list[str] = []
    talk.answer("hello", pieces.append)
    first = talk.messages[1]["content"]
    assert "".join(pieces) == first
    assert sum(map(bool, pieces)) > 1  # it was streamed
    talk.again(lambda text: None)
    assert [one["role"] for one in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"] != first  # another seed
    repeated = Conversation(weights, SamplingParams(max_tokens=12, seed=3))
    repeated.answer("hello", lambda text: None)
    assert repeated.messages[1]["content"] == first


def test_ctrl_c_stops_the_answer_and_nothing_else() -> None:
    talk = Conversation(load_weights("tiny"), SamplingParams(max_tokens=500, seed=0))
    pressed = threading.Event()

    def show(text: str) -> None:
        if not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    assert talk.answer("hello", show) == "interrupted"
    assert signal.getsignal(signal.SIGINT) is before
    assert 0 < len(talk.messages[-1]["content"]) < 500
    assert talk.answer("and?", lambda text: None) in ("length", "stop")  # the sampler still works


@pytest.mark.slow
def test_a_reward_model_is_not_sampled_from(tmp_path: Path, capsys: Captured) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "2 + 3 = ", "chosen": "5", "rejected": "6"}\n')
    out = str(tmp_path / "reward")
    assert main(["train", "reward", "--data", str(data), "--steps", "1", "--out", out]) == 0
    assert main(["sample", out, "hi"]) == 1
    assert "reward model" in capsys.readouterr().err


def test_rows_that_are_gone_leave_the_chat_template(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"data": str(tmp_path / "gone.jsonl")}))
    assert loaded.trained_as_chat(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "config.json").write_text(json.dumps({"data": str(tmp_path / "rows.jsonl")}))
    assert not loaded.trained_as_chat(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"data": str(tmp_path / "rows.jsonl"), "group_size": 8}))
    assert loaded.trained_as_chat(tmp_path)  # problems of `train rl` are turns
