"""The recipe `distill` with a teacher of another tokenizer, and with one whose whole distribution is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lossbook as lb
from lossbook.cookbook import distill, sft
from lossbook.cookbook.distillation.crossed import Tokenizers
from lossbook.cookbook.distillation.examples import build_examples, prompt_of
from lossbook.cookbook.distillation.teachers import all_tokens, answer_positions
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.settings.distill import DistillConfig
from lossbook.cookbook.settings.sft import SFTConfig
from lossbook.datums.builders.alignment import Crossed
from lossbook.datums.errors import AlignmentError, LossContractError, ModelError
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from ..datums.builders.other_tokenizers import save_model

ANSWERS = {
    "red": "the hat",
    "blue": "the cat",
    "green": "a cat's hat",
    "white": "hats",
    "black": "that",
    "grey": "cats",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of six short questions, and a run of a model with byte pairs that has half learned the answers."""
    folder = tmp_path_factory.mktemp("crossed")
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in ANSWERS.items()
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_model(folder / "model")
    settings = {"steps": 14, "batch_size": 6, "learning_rate": 5e-3, "all_weights": True}
    data = str(folder / "train.jsonl")
    sft.main(SFTConfig(data=data, model=str(folder / "model"), out=folder / "teacher", **settings))
    return {
        "data": folder / "train.jsonl",
        "model": folder / "model",
        "teacher": folder / "teacher",
        "student": folder / "student",
    }


@pytest.fixture
def make(places: dict[str, Path], tmp_path: Path) -> Any:
    def make(**changes: Any) -> DistillConfig:
        settings = {
            **{"data": str(places["data"]), "eval_data": str(places["data"]), "teacher": str(places["teacher"])},
            **{"all_weights": True, "steps": 10, "batch_size": 6, "learning_rate": 3e-3, "loss": "gold"},
        }
        return DistillConfig(**{**settings, "out": tmp_path / "run", **changes})

    return make


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="gold"),
        pytest.param({"cross_entropy": 0.1, "steps": 4}, id="gold beside cross-entropy", marks=pytest.mark.slow),
        pytest.param({"loss": "uld", "cross_entropy": 0.1}, id="uld", marks=pytest.mark.slow),
        pytest.param(
            {"mode": "on_policy", "samples": 8, "max_tokens": 8, "steps": 4, "learning_rate": 1e-3},
            id="sampled answers",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_student_comes_nearer_to_a_teacher_with_another_tokenizer(
    make: Any, places: dict[str, Path], changes: dict[str, Any]
) -> None:
    if "mode" in changes:  # who answers by bytes at random writes no text
        settings = {"steps": 12, "batch_size": 6, "learning_rate": 3e-3, "all_weights": True}
        sft.main(SFTConfig(data=str(places["data"]), out=places["student"], **settings))
        changes = {**changes, "start_from": places["student"]}
    config = make(**changes)
    last = distill.main(config)
    rows = read_metrics(config.out / "metrics.jsonl")
    assert last["held_out_distance"] < (0.95 if config.mode == "off_policy" else 0.99) * rows[0]["held_out_distance"]
    if config.cross_entropy:
        assert last["held_out_nll"] < rows[0]["held_out_nll"] - 0.5
    assert 0 < rows[1]["compared"] < 1  # some of the student's bytes lie inside a byte pair
    assert rows[1]["compared"] == rows[-2]["compared"] or config.mode == "on_policy"
    assert "held_out_forward_kl" not in last


@pytest.mark.slow
def test_a_teacher_of_the_same_tokenizer_may_be_read_whole(make: Any, places: dict[str, Path]) -> None:
    config = make(loss="full_forward_kl", model=str(places["model"]))
    last = distill.main(config)
    rows = read_metrics(config.out / "metrics.jsonl")
    assert rows[1]["compared"] == 1.0
    assert last["held_out_forward_kl"] < 0.9 * rows[0]["held_out_forward_kl"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": "topk_forward_kl"}, ModelError, "has another tokenizer"),
        ({"loss": "full_forward_kl"}, ModelError, "has another tokenizer"),
        ({"top_k": 5}, LossContractError, "gold reads the teacher's whole distribution, not of candidates"),
        ({"loss": "topk_forward_kl", "cross_entropy": 1.0}, LossContractError, "topk_forward_kl is none"),
    ],
    ids=["candidates", "same vocabulary", "K", "cross-entropy"],
)
def test_what_does_not_go_together_is_refused(
    make: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        distill.main(make(**changes))


# --- what the teacher reads -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return build_tiny_tokenizer(), save_model(tmp_path_factory.mktemp("model"))


def sampled(tokenizers: tuple[Any, Any], answers: list[list[int]]) -> tuple[list[lb.Datum], Any]:
    """Datums of sampled answers to one question, and its example."""
    row = {"prompt": [{"role": "user", "content": "red"}], "completion": [{"role": "assistant", "content": "the hat"}]}
    (example,), _ = build_examples([row], tokenizers[0], teacher_tokenizer=tokenizers[1])
    prompt = prompt_of(example.student)
    weights = [[0.0] * len(prompt) + [1.0] * len(answer) for answer in answers]
    made = [lb.datum_from_tokens_weights([*prompt, *a], w) for a, w in zip(answers, weights, strict=True)]
    return made, example


def test_both_read_the_row_with_their_own_tokens(tokenizers: tuple[Any, Any]) -> None:
    _, example = sampled(tokenizers, [])
    texts = [tok.decode(all_tokens(d)) for tok, d in zip(tokenizers, (example.student, example.teacher), strict=True)]
    assert texts[0] == texts[1]
    assert len(all_tokens(example.teacher)) < len(all_tokens(example.student))


def test_a_sampled_answer_is_read_in_the_teachers_tokens_with_its_own_end(tokenizers: tuple[Any, Any]) -> None:
    own, other = tokenizers
    end = own.convert_tokens_to_ids("<|im_end|>")
    ended, cut = [*own("that cat")["input_ids"], end], own("that ca")["input_ids"]
    students, example = sampled(tokenizers, [ended, cut])
    both = Tokenizers(own, other)
    made = both.cross_answers(students, [example])
    for datum, text in zip(made, ("that cat<|im_end|>", "that ca"), strict=True):
        read = datum.loss_fn_inputs["teacher_tokens"].data
        assert other.decode(read) == f"{other.decode(prompt_of(example.teacher))}{text}"
    weights = [datum.loss_fn_inputs["span_weights"].to_numpy() for datum in made]
    assert both.counts.compared == int(sum((w != 0).sum() for w in weights))
    assert both.counts.answers == len(ended) + len(cut)
    assert both.metrics() == {"compared": both.counts.compared / both.counts.answers}
    assert weights[0][answer_positions(students[0])][-1] == 1  # the two ends belong together


def test_an_answer_that_is_no_text_is_left_out_and_counted(tokenizers: tuple[Any, Any]) -> None:
    own, other = tokenizers
    students, example = sampled(tokenizers, [own("cat")["input_ids"], [0xC3]])
    both = Tokenizers(own, other)
    made = both.cross_answers(students, [example])
    assert len(made) == 1
    assert both.metrics()["unaligned"] == 1.0
    with pytest.raises(AlignmentError, match="none of the 1 sampled answers can be aligned: the two tokenizations"):
        both.cross_answers(students[1:], [example])


def test_nothing_compared_yet_is_no_share() -> None:
    tokenizer = build_tiny_tokenizer()
    both = Tokenizers(tokenizer, tokenizer)
    assert both.metrics() == {"compared": 0.0}
    assert both.counts == Crossed()
    datum = lb.datum_from_tokens_weights([1, 2, 3], [0, 1, 1])
    assert both.cross(datum, datum).loss_fn_inputs["teacher_positions"].data == [0, 1]
    assert np.isclose(both.metrics()["compared"], 1.0)
