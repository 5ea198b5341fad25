"""The recipe `reward`: a scalar head learns which answer is better, scores new ones, and loads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from lossbook import register_loss, unregister_loss
from lossbook.cookbook import reward, sft
from lossbook.cookbook.cli import main as command_line
from lossbook.cookbook.preferences.reward_models import Scorer
from lossbook.cookbook.reward import RewardConfig
from lossbook.cookbook.run.runs import read_metrics
from lossbook.cookbook.sft import SFTConfig
from lossbook.datums.errors import DataFileError, LengthMismatchError, LossContractError, ModelError
from lossbook.datums.files.rows import datums_from_row
from lossbook.losses import Seqs
from lossbook.trainer.model.tiny import build_tiny_model, build_tiny_tokenizer

THINGS = ("rose", "sky", "grass", "snow", "coal", "fog", "sea", "sand")


def pair_row(thing: str, **more: Any) -> dict[str, Any]:
    sides = {"chosen": f"yes {thing}", "rejected": f"no {thing}"}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": [{"role": "user", "content": f"Is it {thing}?"}], **answers, **more}


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """A config for the tiny model; what is held out has other words in it."""
    data = write(tmp_path / "train.jsonl", [pair_row(thing) for thing in THINGS[:6]])
    held_out = write(tmp_path / "held_out.jsonl", [pair_row(thing) for thing in THINGS[6:]])
    settings = {"data": data, "eval_data": held_out, "steps": 10, "batch_size": 4, "learning_rate": 1e-2, "rank": 4}
    return lambda out="run", **changes: RewardConfig(**{**settings, "out": tmp_path / out, **changes})


def numbers(config: RewardConfig) -> list[dict[str, Any]]:
    rows = read_metrics(config.out / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in rows]


def test_scores_begin_at_zero_and_learn_which_answer_is_better(make: Any) -> None:
    config = make()
    last = reward.main(config)
    first = numbers(config)[0]
    assert (first["held_out_accuracy"], first["held_out_margin"], first["held_out_score_spread"]) == (0.5, 0.0, 0.0)
    assert numbers(config)[1]["loss"] == pytest.approx(np.log(2))
    assert last["held_out_accuracy"] == 1.0
    assert last["held_out_margin"] > 1.0


def test_a_resumed_run_records_what_an_uninterrupted_one_does_head_and_all(make: Any) -> None:
    whole, stopped = make("whole", save_every=5), make("stopped", save_every=5, eval_data=None)
    reward.main(whole)
    reward.main(stopped.model_copy(update={"steps": 5}))
    reward.main(stopped.model_copy(update={"resume": True}))
    expected = [row for row in numbers(whole) if "held_out_score" not in row]
    assert numbers(stopped) == expected
    weights = [config.out / "scorer" / "adapter_model.safetensors" for config in (whole, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_scorer_gives_what_was_measured(make: Any) -> None:
    config = make()
    last = reward.main(config)
    scorer = Scorer(config.out)
    rows = [pair_row(thing) for thing in THINGS[6:]]
    prompts = [row["prompt"] for row in rows]
    chosen, rejected = (np.array(scorer.score(prompts, [row[side] for row in rows])) for side in ("chosen", "rejected"))
    assert (chosen - rejected).mean() == pytest.approx(last["held_out_margin"], abs=1e-4)
    assert scorer.score([], []) == []
    assert len(scorer.score(["a text"], ["another"])) == 1
    with pytest.raises(LengthMismatchError, match="2 prompts and 1 answers"):
        scorer.score(prompts, [rows[0]["chosen"]])


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft with transformers 5
def test_the_exported_scorer_gives_the_same_leads_in_transformers_with_peft(make: Any) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    config = make()
    reward.main(config)
    base = build_tiny_model()
    base.config.num_labels = 1
    classifier = AutoModelForSequenceClassification.from_config(base.config)
    classifier.model.load_state_dict(base.model.state_dict())
    model = PeftModel.from_pretrained(classifier, str(config.out / "scorer")).eval()
    row = pair_row(THINGS[6])
    scores = []
    for datum in datums_from_row(row, build_tiny_tokenizer()):
        last = int(np.flatnonzero(datum.loss_fn_inputs["weights"].to_numpy())[-1])
        with torch.no_grad():
            scores.append(model(input_ids=torch.tensor([datum.model_input.to_ints()[: last + 1]])).logits.item())
    expected = Scorer(config.out).score([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
    assert scores[0] - scores[1] == pytest.approx(expected[0] - expected[1], abs=1e-4)  # the head's bias cancels
    assert abs(scores[0] - scores[1]) > 1.0


def test_a_margin_in_the_rows_is_read(make: Any, tmp_path: Path) -> None:
    rows = [pair_row(thing, margin=2.0) for thing in THINGS[:6]]
    config = make(data=write(tmp_path / "margins.jsonl", rows), steps=1)
    reward.main(config)
    assert numbers(config)[1]["loss"] == pytest.approx(np.log(1 + np.exp(2.0)))  # -log σ(0 - 2)


def squared_lead(values: Tensor, seqs: Seqs) -> Tensor:
    """A regression of the lead on 1."""
    chosen, rejected = seqs.pairs(seqs.last(values))
    return (chosen - rejected - 1).square()


def test_a_loss_of_your_own_teaches_the_head_too(make: Any) -> None:
    register_loss("squared_lead", per="pair")(squared_lead)
    try:
        assert reward.main(make(loss="squared_lead"))["held_out_accuracy"] == 1.0
    finally:
        unregister_loss("squared_lead")  # other tests list those that are registered


@pytest.mark.parametrize("loss", ["dpo", "cross_entropy", "value_mse"])
def test_a_loss_that_compares_no_scores_is_refused_before_anything_is_made(loss: str, make: Any) -> None:
    config = make(loss=loss)
    with pytest.raises(LossContractError, match=f"{loss} does not compare scores"):
        reward.main(config)
    assert not config.out.exists()


def test_labelled_answers_are_refused_with_their_row(make: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}]
    with pytest.raises(DataFileError, match=r"labels\.jsonl, line 1: reward_bt compares pairs"):
        reward.main(make(data=write(tmp_path / "labels.jsonl", rows)))


def test_the_unread_output_head_cannot_be_trained(make: Any) -> None:
    with pytest.raises(ValidationError, match="train_unembed adapts the output head"):
        make(train_unembed=True)


def test_a_checkpoint_without_a_head_is_no_reward_model(make: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "sft.jsonl", [{"prompt": "a", "completion": "b"}])
    config = SFTConfig(data=Path(data), out=tmp_path / "sft", steps=1, rank=4)
    sft.main(config)
    with pytest.raises(ModelError, match="has no scalar head"):
        Scorer(config.out)


def test_a_reward_model_begins_with_the_weights_of_a_run_without_a_head(make: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "sft.jsonl", [{"prompt": "a", "completion": "b"}])
    first = SFTConfig(data=Path(data), out=tmp_path / "sft", steps=2, rank=4, learning_rate=1e-2)
    sft.main(first)
    config = make(start_from=first.out, steps=1, learning_rate=1e-30)
    reward.main(config)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    from safetensors.torch import load_file

    before, after = (load_file(run.out / "adapter" / "adapter_model.safetensors")[name] for run in (first, config))
    assert torch.equal(before, after)
    assert before.any()


def test_the_example_file_holds_valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[RewardConfig] = []
    monkeypatch.setattr(reward, "main", taken.append)
    example = Path(__file__).resolve().parents[2] / "examples" / "reward.toml"
    assert command_line(["train", "reward", "--config", str(example)]) == 0
    assert taken[0].loss_config == {"center_coefficient": 0.01}
