"""Answers to the same prompts as training goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lossbook.cookbook import sft
from lossbook.cookbook.run.runs import read_metrics, read_rows
from lossbook.cookbook.sft import SFTConfig
from lossbook.cookbook.steps.samples import prompt_tokens
from lossbook.trainer.model.tiny import build_tiny_tokenizer


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """The tiny model learns one answer."""
    data = tmp_path / "train.jsonl"
    data.write_text(json.dumps({"prompt": "hi", "completion": "ho"}) + "\n")

    def make(out: str = "run", **changes: Any) -> SFTConfig:
        settings = {"data": data, "steps": 30, "learning_rate": 1e-2, "rank": 4, "save_every": 10}
        return SFTConfig(**{**settings, "out": tmp_path / out, **changes})

    return make


def test_the_prompts_are_answered_before_at_every_nth_step_and_at_the_end(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(sample_prompts=("hi", "he"), sample_every=20, sample_tokens=8)
    sft.main(config)
    rows = read_rows(config.out / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [(s, p) for s in (0, 20, 30) for p in ("hi", "he")]
    assert (rows[-2]["answer"], rows[-2]["stop_reason"]) == ("ho", "stop")
    assert rows[0]["answer"] != "ho"
    assert "step 30  'hi' -> 'ho'" in capsys.readouterr().err


@pytest.mark.slow
def test_asking_changes_no_number_and_a_resumed_run_asks_as_an_uninterrupted_one(make: Any) -> None:
    asked, silent = make("asked", sample_prompts=("hi",), sample_every=4), make("silent")
    sft.main(asked)
    sft.main(silent)
    losses = [[row["loss"] for row in read_metrics(one.out / "metrics.jsonl")] for one in (asked, silent)]
    assert losses[0] == losses[1]
    resumed = make("resumed", sample_prompts=("hi",), sample_every=4)
    sft.main(resumed.model_copy(update={"steps": 20}))
    with (resumed.out / "samples.jsonl").open("a") as file:
        file.write('{"step": 24, "prompt": "hi", "answer": "of a step that was never saved"}\n')
    sft.main(resumed.model_copy(update={"resume": True}))
    assert read_rows(resumed.out / "samples.jsonl") == read_rows(asked.out / "samples.jsonl")


def test_a_prompt_is_a_users_turn_where_there_is_a_chat_template_and_plain_text_where_not() -> None:
    tokenizer = build_tiny_tokenizer()
    assert tokenizer.decode(prompt_tokens("hi", tokenizer)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    assert tokenizer.decode(prompt_tokens("hi", tokenizer)) == "hi"
