"""The recipe `sft`: it learns, it resumes as if it had never stopped, and what it exports is what it trained."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lossbook import ServiceClient
from lossbook.cookbook import sft
from lossbook.cookbook.run.configs import adam_params
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import DataFileError, LossContractError, NonFiniteLossError, RunError, UnknownLossError

ANSWERS = {"red": "rose", "blue": "sky", "green": "grass", "white": "snow", "black": "coal", "grey": "fog"}


def focal(logprobs: Tensor, *, gamma: float = 2.0) -> Tensor:
    """A loss a token, never registered."""
    return -((1 - logprobs.exp()) ** gamma) * logprobs


def hosted(data: Any, logprobs_list: Any) -> Any:
    """A loss in the hosted APIs' style, which reduces itself."""
    sums = [-(d.loss_fn_inputs["weights"].to_torch() * lp).sum() for d, lp in zip(data, logprobs_list, strict=True)]
    return torch.stack(sums).mean(), {"sequences": float(len(sums))}


def breaks_at_the_third_step(logprobs: Tensor) -> Tensor:
    """A loss that turns NaN; it is called once per step, and twice more when the first step is recorded token by token."""
    CALLS.append(1)
    return -logprobs * (float("nan") if len(CALLS) > 4 else 1.0)


CALLS: list[int] = []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of six short conversations."""
    path = tmp_path / "train.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": thing}]}
        for name, thing in ANSWERS.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Any:
    """A config for the tiny model, quick to train."""

    def make(out: str = "run", **changes: Any) -> SFTConfig:
        settings = {"data": data, "eval_data": data, "steps": 6, "batch_size": 4, "learning_rate": 1e-2, "rank": 4}
        return SFTConfig(**{**settings, "out": tmp_path / out, **changes})

    return make


def numbers(config: SFTConfig) -> list[dict[str, Any]]:
    """All that was recorded, apart from the speed."""
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


@pytest.mark.usefixtures("curve")
def test_it_learns_and_leaves_settings_report_metrics_curve_checkpoint_and_adapter(
    make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(steps=12)
    last = sft.main(config)
    rows = numbers(config)
    assert [row["step"] for row in rows] == [0, *range(1, 13), 12]
    assert rows[-1]["held_out_nll"] < rows[0]["held_out_nll"] - 1
    assert last["held_out_nll"] == rows[-1]["held_out_nll"]
    assert {"loss", "nll", "grad_norm", "learning_rate", "response_tokens"} <= rows[1].keys()
    files = {str(path.relative_to(config.out)) for path in config.out.rglob("*") if path.is_file()}
    assert {
        "config.json",
        "data_report.json",
        "metrics.jsonl",
        "curve.png",
        "checkpoints/step-000012/MANIFEST.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    } <= files
    assert "rows    6: 6 kept (0 truncated), 0 dropped" in capsys.readouterr().out
    assert json.loads((config.out / "data_report.json").read_text())["labels_lost"] == 0


def test_the_same_rows_train_the_same_from_another_source(make: Any, data: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    datasets.Dataset.from_list(rows).to_parquet(str(data.with_suffix(".parquet")))
    plain, table = make("plain", steps=2), make("table", steps=2, data=data.with_suffix(".parquet"))
    sft.main(plain)
    sft.main(table)
    assert numbers(plain) == numbers(table)


def test_a_resumed_run_records_what_an_uninterrupted_one_does_bit_for_bit(make: Any) -> None:
    whole, stopped = make("whole", save_every=2, eval_every=3), make("stopped", save_every=2, eval_every=3)
    sft.main(whole)
    sft.main(stopped.model_copy(update={"steps": 4}))
    # as if it had been killed in its fifth step, after step 4 was saved
    with (stopped.out / "metrics.jsonl").open("a") as file:
        file.write('{"loss": 123.0, "step": 5}\n')
    sft.main(stopped.model_copy(update={"resume": True}))
    expected = numbers(whole)
    rows = [row for row in numbers(stopped) if not (row["step"] == 4 and "held_out_nll" in row)]  # its last step then
    assert rows == expected
    weights = [config.out / "adapter" / "adapter_model.safetensors" for config in (whole, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_resuming_is_not_the_same_as_beginning_with_the_saved_weights_and_a_cold_optimizer(make: Any) -> None:
    """Otherwise the test above would prove nothing about the optimizer's state."""
    config = make(steps=3)
    sft.main(config)
    warm = make(steps=4, resume=True)
    sft.main(warm)
    service = ServiceClient()
    saved = config.out / "checkpoints" / "step-000003"
    cold = service.create_training_client_from_state(str(saved), optimizer=False)
    datums, _, _ = sft.load_data(warm, cold.get_tokenizer())
    batch = [datums[i] for i in sft.Batches(len(datums), 4, 0).at(4)]
    cold.forward_backward(batch, sft.single_sequence_loss(warm)).result()
    cold.optim_step(adam_params(warm, 4, 4)).result()
    loss = cold.forward(datums, "cross_entropy", {"reduction": "token-mean"}).result().metrics["loss:sum"]
    assert loss != numbers(warm)[-1]["held_out_nll"]


def test_ctrl_c_finishes_the_step_saves_and_exits_with_130_and_resume_goes_on(
    make: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, config = make("whole"), make("run")
    sft.main(whole)
    at = sft.Batches.at

    def press(self: Any, step: int) -> list[int]:
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return at(self, step)

    monkeypatch.setattr(sft.Batches, "at", press)
    with pytest.raises(SystemExit) as left:
        sft.main(config)
    monkeypatch.undo()
    assert left.value.code == 130
    assert "stopped after step 3, saved in" in capsys.readouterr().err
    assert numbers(config)[-1]["step"] == 3
    sft.main(config.model_copy(update={"resume": True}))
    assert numbers(config) == numbers(whole)


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft with transformers 5
def test_the_exported_adapter_gives_the_same_logprobs_in_peft(make: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    from lossbook.trainer.model.tiny import build_tiny_model

    config = make()
    sft.main(config)
    training = ServiceClient().create_training_client_from_state(str(config.out / "checkpoints" / "step-000006"))
    datums, _, _ = sft.load_data(config, training.get_tokenizer())
    ours = training.forward(datums).result().loss_fn_outputs
    base = build_tiny_model()
    inputs = [torch.tensor([datum.model_input.to_ints()]) for datum in datums]
    with torch.no_grad():
        before = [base(tokens).logits[0].log_softmax(-1) for tokens in inputs]
        model = PeftModel.from_pretrained(base, str(config.out / "adapter"))
        after = [model(input_ids=tokens).logits[0].log_softmax(-1) for tokens in inputs]
    for datum, output, old, new in zip(datums, ours, before, after, strict=True):
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()[:, None]
        torch.testing.assert_close(output["logprobs"].to_torch(), new.gather(1, targets)[:, 0], atol=1e-5, rtol=1e-5)
        assert (old - new).abs().max() > 0.1


@pytest.mark.parametrize(
    ("loss", "loss_config"),
    [("focal", {"gamma": 1.0}), ("hosted", {}), ("cross_entropy", {"reduction": "seq-mean-token-mean"})],
)
def test_any_loss_can_be_named(make: Any, monkeypatch: pytest.MonkeyPatch, loss: str, loss_config: Any) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    name = loss if loss == "cross_entropy" else f"{Path(__file__).stem}:{loss}"
    config = make(loss=name, loss_config=loss_config, steps=12, eval_data=None)
    last = sft.main(config)
    assert last["loss"] < 0.7 * numbers(config)[0]["loss"]


def test_a_loss_that_breaks_is_named_with_its_step_and_what_was_saved_stays(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    config = make(loss=f"{Path(__file__).stem}:breaks_at_the_third_step", save_every=1)
    with pytest.raises(NonFiniteLossError, match=r"^step 3: breaks_at_the_third_step: .* not finite"):
        sft.main(config)
    assert [row["step"] for row in numbers(config)] == [0, 1, 2]
    assert (config.out / "checkpoints" / "step-000002" / "MANIFEST.json").exists()


def test_a_token_loss_is_averaged_unless_it_says_otherwise(make: Any) -> None:
    assert sft.single_sequence_loss(make()).reduction == "token-mean"
    assert sft.single_sequence_loss(make(loss_config={"reduction": "sum"})).reduction == "sum"


def test_a_misspelt_loss_ends_the_run_before_anything_is_made(make: Any) -> None:
    config = make(loss="cross_entrpy")
    with pytest.raises(UnknownLossError, match="Did you mean 'cross_entropy'"):
        sft.main(config)
    assert not config.out.exists()


def test_a_loss_over_pairs_is_refused(make: Any) -> None:
    with pytest.raises(LossContractError, match="dpo compares pairs"):
        sft.main(make(loss="dpo"))


def test_a_preference_pair_is_not_taken_for_two_answers(make: Any, data: Path) -> None:
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(DataFileError, match="line 1: the row is a preference pair"):
        sft.main(make())


def test_a_second_run_in_the_same_folder_is_refused_and_after_a_mistake_in_the_data_it_is_not(
    make: Any, data: Path
) -> None:
    good = data.read_text()
    data.write_text("{broken\n")
    with pytest.raises(DataFileError, match=r"train\.jsonl, line 1"):
        sft.main(make(steps=1))
    data.write_text(good)
    sft.main(make(steps=1))
    with pytest.raises(RunError, match="is not empty"):
        sft.main(make(steps=1))
    assert sft.main(make(steps=1, overwrite=True))["step"] == 1


def test_resuming_beyond_the_steps_asked_for_is_refused(make: Any) -> None:
    sft.main(make(steps=2))
    with pytest.raises(RunError, match="already made 2 steps, more than the 1"):
        sft.main(make(steps=1, resume=True))


def test_a_task_is_scored_on_questions_held_out(tmp_path: Path) -> None:
    config = SFTConfig(
        out=tmp_path / "run",
        task="letter_counting",
        task_config={"min_words": 1, "max_words": 1},
        task_size=96,
        held_out=12,
        steps=12,
        learning_rate=1e-2,
        schedule="linear",
        warmup_steps=2,
    )
    last = sft.main(config)
    scores = [row["held_out_score"] for row in numbers(config) if "held_out_score" in row]
    assert scores[0] == 0.0
    assert scores[-1] == last["held_out_score"] >= 0.5
    rates = [row["learning_rate"] for row in numbers(config) if "learning_rate" in row]
    assert rates[:2] == pytest.approx([0.5 * 1e-2, 1e-2])
    assert rates[-1] == 0


def test_negative_weights_can_be_trained_on_beside_held_out_rows_with_some(make: Any, tmp_path: Path) -> None:
    """The held-out loss is that of the tokens to imitate: of positive weight."""
    path, positive = tmp_path / "signed.jsonl", tmp_path / "positive.jsonl"
    rows = [[0, 1.0, -1.0, 2.0], [0, -1.0, -1.0, 0]]
    path.write_text("".join(json.dumps({"tokens": [65, 66, 67, 68], "weights": row}) + "\n" for row in rows))
    positive.write_text(json.dumps({"tokens": [65, 66, 67, 68], "weights": [0, 1.0, 0, 2.0]}) + "\n")
    settings = {"data": path, "loss_config": {"reduction": "sum"}, "batch_size": 2, "steps": 2}
    last = sft.main(make(eval_data=path, **settings))
    assert last["held_out_nll"] == sft.main(make("positive", eval_data=positive, **settings))["held_out_nll"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "choose one of --data FILE and --task NAME", id="nothing to train on"),
        pytest.param({"data": "a", "task": "b"}, "choose one", id="two things to train on"),
        pytest.param(
            {"data": "a", "task_config": {"b": 1}}, "task_config is for --task only", id="task settings alone"
        ),
        pytest.param(
            {"task": "a", "eval_data": "b"}, "eval_data is for --data only", id="a held-out file beside a task"
        ),
        pytest.param(
            {"data": "a", "task_size": 8}, "task_size is for --task only", id="a number of questions of no task"
        ),
        pytest.param({"data": "a", "held_out": 8}, "held_out is for --task only", id="held-out questions of no task"),
        pytest.param({"task": "a", "train_on": "all"}, "train_on is for --data only", id="turns of a task"),
        pytest.param({"data": "a", "steps": 1, "epochs": 2}, "choose one of --steps and --epochs", id="two lengths"),
        pytest.param({"data": "a", "truncation": "left"}, "truncation is for --max-length only", id="nothing to cut"),
        pytest.param({"data": "a", "steps": 10**30}, "steps", id="more steps than any run takes"),
        pytest.param({"data": "a", "all_weights": True, "rank": 4}, "so rank would be ignored", id="no adapters"),
        pytest.param({"data": "a", "sample_every": 4}, "sample_every is for --sample-prompts", id="no prompts"),
        pytest.param({"data": "a", "learning_rat": 1.0}, "learning_rat", id="a misspelt key"),
        pytest.param({"data": "a", "learning_rate": float("nan")}, "learning_rate", id="NaN"),
        pytest.param({"data": "a", "rank": 0}, "rank", id="rank 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SFTConfig(**settings)


def test_held_out_rows_that_are_trained_on_are_named(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft.main(make(steps=1))
    assert "warning: 6 held-out rows also occur in the training data: train.jsonl, line 1 is train.jsonl, line 1" in (
        capsys.readouterr().err
    )
    other = tmp_path / "held_out.jsonl"
    other.write_text(json.dumps({"prompt": "pink", "completion": "peony"}) + "\n")
    sft.main(make("other", steps=1, eval_data=other))
    assert "also occur in the training data" not in capsys.readouterr().err
