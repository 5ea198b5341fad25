"""The recipe `dpo`: one word chooses the loss, which says itself what it needs; preferences are learned and measured alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import logsigmoid

from lossbook import Datum, ServiceClient, register_loss, unregister_loss
from lossbook.cookbook import dpo
from lossbook.cookbook.cli import main as command_line
from lossbook.cookbook.dpo import DPOConfig
from lossbook.cookbook.preferences.evaluation import accuracy_and_margin, coarse_kl, sides
from lossbook.cookbook.preferences.examples import Needs, build_examples, flat, needs_of, with_mismatched
from lossbook.cookbook.preferences.from_tasks import preference_rows
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.tasks.reasoning_gym_tasks import Task
from lossbook.datums.errors import (
    DataFileError,
    EmptyLossError,
    LossContractError,
    MissingInput,
    TaskError,
    UnknownLossError,
)
from lossbook.losses import PerDatum, Seqs, get_loss
from lossbook.trainer import TrainingClient
from lossbook.trainer.model.tiny import build_tiny_tokenizer

THINGS = ("rose", "sky", "grass", "snow", "coal", "fog", "sea", "sand")


def hosted_dpo(data: Sequence[Datum], logprobs_list: Sequence[Tensor]) -> tuple[Tensor, dict[str, float]]:
    """DPO as the hosted APIs want a custom loss; it tells nobody what it reads."""
    gains = torch.stack(
        [
            (d.loss_fn_inputs["weights"].to_torch() * (lp - d.loss_fn_inputs["ref_logprobs"].to_torch())).sum()
            for d, lp in zip(data, logprobs_list, strict=True)
        ]
    )
    return -logsigmoid(0.1 * (gains[0::2] - gains[1::2])).mean(), {"pairs": len(data) / 2}


def pair_row(thing: str) -> dict[str, Any]:
    sides = {"chosen": f"yes {thing}", "rejected": f"no {thing}"}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": [{"role": "user", "content": f"Is it {thing}?"}], **answers}


def labelled_row(thing: str, label: bool) -> dict[str, Any]:
    row = pair_row(thing)
    return {"prompt": row["prompt"], "completion": row["chosen" if label else "rejected"], "label": label}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", [pair_row(thing) for thing in THINGS[:6]])


@pytest.fixture
def make(data: str, tmp_path: Path) -> Any:
    """A config for the tiny model; what is held out has other words in it."""
    held_out = write(tmp_path / "held_out.jsonl", [pair_row(thing) for thing in THINGS[6:]])
    settings = {"data": data, "eval_data": held_out, "steps": 8, "batch_size": 4, "learning_rate": 1e-2, "rank": 4}

    def make(out: str = "run", **changes: Any) -> DPOConfig:
        return DPOConfig(**{**settings, "references": tmp_path / "references", "out": tmp_path / out, **changes})

    return make


def numbers(config: DPOConfig) -> list[dict[str, Any]]:
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def held_out(config: DPOConfig) -> list[dict[str, Any]]:
    return [row for row in numbers(config) if "held_out_accuracy" in row]


LOSSES = (
    *("dpo", "ipo", "simpo", "orpo", "cpo", "kto", f"{Path(__file__).stem}:hosted_dpo"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("hinge", "apo_zero_unpaired", "aot")),
)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_word_changes_the_loss_and_every_loss_learns_the_preference(
    loss: str, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = make(loss=loss)
    dpo.main(config)
    before, after = held_out(config)
    assert before["held_out_accuracy"] == 0.0  # the tiny model's weights happen to find "no" likelier
    assert after["held_out_accuracy"] == 1.0
    assert after["held_out_margin"] > before["held_out_margin"] + 0.5


def test_before_the_first_step_nothing_has_changed_and_dpo_begins_at_ln_2(make: Any) -> None:
    config = make()
    dpo.main(config)
    first = numbers(config)[0]
    assert first["held_out_reward_accuracy"] == 0.5
    for name in ("reward_margin", "chosen_change", "rejected_change", "kl"):
        assert first[f"held_out_{name}"] == pytest.approx(0.0, abs=1e-4)
    assert numbers(config)[1]["loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_changes_and_margin_are_those_of_the_answers_logprobs(make: Any) -> None:
    config = make()
    last = dpo.main(config)
    service = ServiceClient()
    now = service.create_training_client_from_state(str(config.out / "checkpoints" / "step-000008"))
    start = service.create_lora_training_client("tiny", rank=4, seed=0)
    examples, _ = build_examples(map(pair_row, THINGS[6:]), Needs("dpo"), now.get_tokenizer())
    sums = []
    for client in (start, now):
        outputs = client.forward(flat(examples)).result().loss_fn_outputs
        weights = [datum.loss_fn_inputs["weights"].to_torch() for datum in flat(examples)]
        sums.append([float((w * o["logprobs"].to_torch()).sum()) for w, o in zip(weights, outputs, strict=True)])
    gains = np.subtract(sums[1], sums[0])
    assert last["held_out_chosen_change"] == pytest.approx(gains[0::2].mean(), abs=1e-3)
    assert last["held_out_rejected_change"] == pytest.approx(gains[1::2].mean(), abs=1e-3)
    assert last["held_out_reward_margin"] == pytest.approx((gains[0::2] - gains[1::2]).mean(), abs=1e-3)
    assert last["held_out_kl"] > 0.01


def test_runs_that_differ_in_their_loss_share_the_reference(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    dpo.main(make("first"))
    assert "reference logprobs of 12 datums: computed" in capsys.readouterr().out
    dpo.main(make("second", loss="ipo"))
    said = capsys.readouterr().out
    assert "reference logprobs of 12 datums: read from" in said
    assert "computed" not in said


def test_a_loss_without_a_reference_asks_for_none_of_the_training_data(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    dpo.main(make(loss="simpo"))
    said = capsys.readouterr().out
    assert "reference logprobs of 12 datums" not in said
    assert "reference logprobs of 4 datums: computed" in said  # what is held out, for the changes


def test_a_resumed_run_records_what_an_uninterrupted_one_does_and_keeps_its_first_reference(make: Any) -> None:
    whole, stopped = make("whole", save_every=2, eval_every=4), make("stopped", save_every=2, eval_every=4)
    dpo.main(whole)
    stopped = stopped.model_copy(update={"references": None})
    dpo.main(stopped.model_copy(update={"steps": 4}))
    dpo.main(stopped.model_copy(update={"resume": True}))
    assert numbers(stopped) == numbers(whole)
    weights = [config.out / "adapter" / "adapter_model.safetensors" for config in (whole, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_reference_of_a_run_that_starts_from_another_is_that_runs_weights(make: Any) -> None:
    first = make("first")
    moved = dpo.main(first)
    second = make("second", start_from=first.out, steps=1)
    dpo.main(second)
    begin = numbers(second)[0]
    assert begin["held_out_margin"] == pytest.approx(moved["held_out_margin"], abs=1e-5)
    assert begin["held_out_reward_margin"] == pytest.approx(0.0, abs=1e-3)
    assert numbers(second)[1]["loss"] == pytest.approx(np.log(2), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_no_batch_holds_half_a_pair(batch_size: int, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[Datum]] = []
    forward_backward = TrainingClient.forward_backward

    def seen(self: Any, data: Any, *rest: Any, **more: Any) -> Any:
        batches.append(list(data))
        return forward_backward(self, data, *rest, **more)

    monkeypatch.setattr(TrainingClient, "forward_backward", seen)
    dpo.main(make(batch_size=batch_size, steps=None, epochs=2, eval_data=None))
    tokenizer = build_tiny_tokenizer()
    texts = [[tokenizer.decode(datum.model_input.to_ints()) for datum in batch] for batch in batches]
    pairs = [tuple(batch[i : i + 2]) for batch in texts for i in range(0, len(batch), 2)]
    assert len(pairs) == 2 * 6
    for chosen, rejected in pairs:
        assert chosen.replace("yes ", "no ") == rejected


# --- kto --------------------------------------------------------------------------------------------------------------


def test_kto_learns_from_labelled_answers_without_pairs(make: Any, tmp_path: Path) -> None:
    rows = [labelled_row(thing, i % 2 == 0) for i, thing in enumerate(THINGS[:6])]
    config = make(loss="kto", data=write(tmp_path / "labels.jsonl", rows), steps=12)
    dpo.main(config)
    before, after = held_out(config)
    assert (before["held_out_accuracy"], after["held_out_accuracy"]) == (0.0, 1.0)


def test_held_out_labelled_answers_are_compared_each_good_one_with_each_bad_one(make: Any, tmp_path: Path) -> None:
    rows = [labelled_row(thing, label) for thing, label in zip(THINGS[4:], (True, False, False, True), strict=True)]
    examples, _ = build_examples(rows, Needs("kto", labels=True), build_tiny_tokenizer())
    good, bad = sides(examples)
    assert sorted(zip(good.tolist(), bad.tolist(), strict=True)) == [(0, 1), (0, 2), (3, 1), (3, 2)]
    config = make(loss="kto", eval_data=write(tmp_path / "labels.jsonl", rows), steps=12)
    assert dpo.main(config)["held_out_accuracy"] == 1.0


def test_held_out_answers_of_one_label_are_refused(make: Any, tmp_path: Path) -> None:
    rows = [labelled_row(thing, True) for thing in THINGS[4:]]
    with pytest.raises(EmptyLossError, match="all 4 held-out answers have the same label"):
        dpo.main(make(loss="kto", eval_data=write(tmp_path / "labels.jsonl", rows)))


def test_kto_gets_pairs_as_labelled_answers_with_one_to_another_prompt_beside_them() -> None:
    tokenizer = build_tiny_tokenizer()
    needs = needs_of(get_loss("kto"))
    examples, _ = build_examples(map(pair_row, THINGS[:3]), needs, tokenizer)
    examples = with_mismatched(examples)
    assert [len(example) for example in examples] == [3, 3, 3]
    marks = [[int(d.loss_fn_inputs[key].to_numpy()) for d in examples[0]] for key in ("label", "is_mismatched")]
    assert marks[0][:2] == [1, 0]
    assert marks[1] == [0, 0, 1]
    for i, side in enumerate(["yes", "no", "yes"]):
        datum = examples[i][2]
        text = tokenizer.decode([*datum.model_input.to_ints(), datum.loss_fn_inputs["target_tokens"].data[-1]])
        assert f"Is it {THINGS[i]}?" in text
        weights = datum.loss_fn_inputs["weights"].to_numpy()
        learned = tokenizer.decode(datum.loss_fn_inputs["target_tokens"].to_numpy()[weights > 0])
        assert learned.startswith(f"{side} {THINGS[(i + 1) % 3]}")
    get_loss("kto").prepare(
        [
            Datum(d.model_input, {**d.loss_fn_inputs, "ref_logprobs": np.zeros(d.model_input.length)})
            for d in flat(examples)
        ]
    )


def test_where_all_prompts_are_the_same_nothing_is_mismatched() -> None:
    rows = [{**pair_row(thing), "prompt": [{"role": "user", "content": "Well?"}]} for thing in THINGS[:3]]
    examples, _ = build_examples(rows, needs_of(get_loss("kto")), build_tiny_tokenizer())
    assert [len(example) for example in with_mismatched(examples)] == [2, 2, 2]


def test_an_answer_that_would_not_fit_behind_another_prompt_is_passed_over() -> None:
    rows = [pair_row("a"), pair_row("a very long answer, of many words"), pair_row("b")]
    examples, _ = build_examples(rows, needs_of(get_loss("kto")), build_tiny_tokenizer())
    limit = examples[0][0].model_input.length + 1
    extended = with_mismatched(examples, limit)
    assert len(extended[0]) == 3
    assert extended[0][2].model_input.length < limit


# --- what losses need, and mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("dpo", Needs("dpo", reference=True)),
        ("simpo", Needs("simpo")),
        ("margin_dpo", Needs("margin_dpo", reference=True, numbers={"margin": True})),
        ("kto", Needs("kto", labels=True, mismatched=True, reference=True)),
        ("apo_zero_unpaired", Needs("apo_zero_unpaired", labels=True, reference=True)),
        ("trl:orpo", Needs("orpo")),
    ],
)
def test_a_loss_says_what_it_needs(loss: str, expected: Needs) -> None:
    assert needs_of(get_loss(loss)) == expected


def test_a_number_that_a_loss_of_your_own_reads_comes_from_the_rows(make: Any, tmp_path: Path) -> None:
    @register_loss("own_margin", per="pair")
    def own(logprobs: Tensor, seqs: Seqs, worth: PerDatum) -> Tensor:
        """Never mind."""
        chosen, rejected = seqs.pairs(seqs.mean(logprobs))
        return -seqs.pairs(worth)[0] * logsigmoid(chosen - rejected)

    try:
        rows = [{**pair_row(thing), "worth": i} for i, thing in enumerate(THINGS[:6])]
        config = make(loss="own_margin", data=write(tmp_path / "worth.jsonl", rows), eval_data=None)
        assert dpo.main(config)["step"] == 8
        del rows[2]["worth"]
        broken = make("broken", loss="own_margin", data=write(tmp_path / "worth.jsonl", rows))
        with pytest.raises(
            MissingInput, match=r"worth\.jsonl, line 3: own_margin reads a number 'worth' .* Add 'worth'"
        ):
            dpo.main(broken)
    finally:
        unregister_loss("own_margin")


def test_a_labelled_answer_for_a_loss_over_pairs_is_refused_with_its_row_and_the_mend(
    make: Any, tmp_path: Path
) -> None:
    rows = [pair_row("rose"), labelled_row("sky", True)]
    with pytest.raises(
        DataFileError, match=r"mixed\.jsonl, line 2: dpo compares pairs, but .* use a loss over labels: kto"
    ):
        dpo.main(make(data=write(tmp_path / "mixed.jsonl", rows)))


@pytest.mark.parametrize(("loss", "wanted"), [("dpo", "'chosen', 'rejected'"), ("kto", "'completion' and 'label'")])
def test_a_row_without_a_preference_is_refused_with_what_it_should_hold(
    loss: str, wanted: str, make: Any, tmp_path: Path
) -> None:
    path = write(tmp_path / "plain.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(
        DataFileError, match=rf"plain\.jsonl, line 1: {loss} needs rows of .*{wanted}.* holds prompt \+ completion"
    ):
        dpo.main(make(loss=loss, data=path))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("cross_entropy", "reads one token at a time and no 'label'.*train sft"),
        ("reward_bt", "lossbook train reward"),
        ("info_nce", "lossbook train embed"),
    ],
)
def test_a_loss_that_preferences_do_not_serve_is_refused_before_anything_is_made(
    loss: str, message: str, make: Any
) -> None:
    config = make(loss=loss)
    with pytest.raises(LossContractError, match=message):
        dpo.main(config)
    assert not config.out.exists()


def test_a_misspelt_loss_is_an_error_with_the_likeliest_one(make: Any) -> None:
    with pytest.raises(UnknownLossError, match="Did you mean 'simpo'"):
        dpo.main(make(loss="sinpo"))


def test_a_misspelt_setting_in_the_file_is_an_error_and_the_file_runs_with_another_loss(
    tmp_path: Path, data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    text = f'data = "{data}"\nout = "{tmp_path}/run"\nloss = "dpo"\nsteps = 2\nrank = 4\n'
    file.write_text(text.replace("loss =", "los ="))
    assert command_line(["train", "dpo", "--config", str(file)]) == 2
    assert "Did you mean 'loss'" in capsys.readouterr().err
    file.write_text(text)
    assert command_line(["train", "dpo", "--config", str(file)]) == 0
    file.write_text(text.replace('loss = "dpo"', 'loss = "orpo"'))
    assert command_line(["train", "dpo", "--config", str(file), "--overwrite"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == "orpo"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "choose one of --data FILE and --task NAME", id="nothing to train on"),
        pytest.param(
            {"task": "a", "eval_data": "b"}, "eval_data is for --data only", id="a held-out file beside a task"
        ),
        pytest.param({"data": "a", "wrong_answer": "scrambld"}, "wrong_answer", id="a misspelt choice"),
        pytest.param({"data": "a", "beta": 0.1}, "beta", id="a setting of the loss among those of the recipe"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOConfig(**settings)


# --- tasks and measures ------------------------------------------------------------------------------------------------


def test_a_tasks_wrong_answers_are_wrong_and_hold_the_same_words_in_an_order_of_their_own() -> None:
    task = Task("word_sequence_reversal", {"min_words": 5, "max_words": 5}, seed=0)
    questions = task.held_out(30)
    rows = preference_rows(task, questions, "scrambled", seed=0)
    assert rows == preference_rows(task, questions, "scrambled", seed=0)
    for question, row in zip(questions, rows, strict=True):
        chosen, rejected = (row[side][0]["content"].split(", ") for side in ("chosen", "rejected"))
        assert task.score(question, ", ".join(chosen)) == 1.0
        assert task.score(question, ", ".join(rejected)) < 1.0
        assert sorted(chosen) == sorted(rejected)
        assert rejected != chosen
        assert rejected[0] != chosen[-1]
        copied = set(zip(chosen[1:], chosen, strict=False))  # neighbours as they stand in the question
        assert not copied & set(pairwise(rejected))


def test_another_questions_answer_is_wrong_too_and_a_task_without_one_says_so() -> None:
    task = Task("letter_counting", {"min_words": 1, "max_words": 1}, seed=0)
    questions = task.held_out(10)
    for question, row in zip(questions, preference_rows(task, questions, "another", seed=0), strict=True):
        assert task.score(question, row["rejected"][0]["content"]) < 1.0
    with pytest.raises(TaskError, match="no scrambled answer is wrong for"):
        preference_rows(task, questions, "scrambled", seed=0)


def test_a_task_is_trained_on_and_measured(tmp_path: Path) -> None:
    config = DPOConfig(
        task="word_sequence_reversal",
        task_config={"min_words": 3, "max_words": 3},
        task_size=16,
        held_out=6,
        wrong_answer="scrambled",
        out=tmp_path / "run",
        steps=2,
        batch_size=4,
        rank=4,
    )
    dpo.main(config)
    assert [row["step"] for row in held_out(config)] == [0, 2]
    assert (config.out / "references").is_dir()


def test_equal_scores_count_half() -> None:
    accuracy, margin = accuracy_and_margin(np.array([2.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.00001, 1.0]))
    assert accuracy == 0.5  # won, equal, equal but for rounding, lost
    assert margin == pytest.approx(0.0, abs=1e-4)


def test_the_coarse_kl_is_the_kl_of_the_joined_outcomes() -> None:
    """By hand: (0.5, 0.25, rest 0.25) to (0.25, 0.25, rest 0.5) is 0.5 ln 2 + 0 - 0.25 ln 2 = 0.25 ln 2."""
    before, now = np.log([[0.5, 0.25]]), np.log([[0.25, 0.25]])
    assert coarse_kl(before, now)[0] == pytest.approx(0.25 * np.log(2))
    assert coarse_kl(before, before)[0] == 0.0


def test_the_coarse_kl_is_at_most_that_of_all_tokens() -> None:
    random = np.random.default_rng(0)
    before, now = (np.log(random.dirichlet(np.ones(12), 50)) for _ in range(2))
    whole = (np.exp(before) * (before - now)).sum(1)
    order = np.argsort(-before, axis=1)[:, :4]
    coarse = coarse_kl(np.take_along_axis(before, order, 1), np.take_along_axis(now, order, 1))
    assert (coarse >= 0).all()
    assert (coarse <= whole + 1e-9).all()
    everything = coarse_kl(before, now)
    np.testing.assert_allclose(everything, whole, atol=1e-6)


def test_the_example_file_holds_valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[DPOConfig] = []
    monkeypatch.setattr(dpo, "main", taken.append)
    example = Path(__file__).resolve().parents[2] / "examples" / "dpo.toml"
    assert command_line(["train", "dpo", "--config", str(example), "--loss", "kto"]) == 0
    assert (taken[0].loss, taken[0].data) == ("kto", str(example.parent / "pairs.jsonl"))
