"""TRL's trainers with losses of ours: the gradient that reaches the optimizer, what they learn, what is refused.

The wanted gradient is of datums: every row alone through the model in float64, unpadded, and one call of the loss over all rows
of the step. TRL's head computes in float32, so float32's rounding is allowed.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import transformers
from torch import Tensor

from lossbook import Datum, get_loss
from lossbook.datums.errors import LossbookError
from lossbook.integrations.trl import with_loss
from lossbook.losses import LossLike
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .reference import assert_same, catcher, datum, outputs, settings, tiny, wanted_gradients

trl = pytest.importorskip("trl")

#: Of TRL's own default.
unwarned = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing(_\\w+)?` is deprecated:FutureWarning")
pytestmark = [pytest.mark.slow, unwarned]

#: What runs on two processes too.
SFT, DPO = get_loss("dft", reduction="seq-mean-token-mean"), get_loss("dpo", beta=0.3)
#: float32 rounding, of gradients relative to the largest entry.
ROUNDING = 1e-6
PROMPTS = ["one", "three plus four", "a", "say hello", "go", "count", "what is it", "b?"]
ANSWERS = ["1", "seven", "b", "hello you", "gone", "1 2 3 4 5 6", "it is", "c"]
WORSE = ["2", "eight or nine", "c", "bye", "no", "1 2", "no idea at all", "x"]


def model(seed: int = 0) -> Any:
    return tiny(seed, vocabulary=260, pad=257, end=256)


def config(kind: Any, folder: Path, accumulation: int, **others: Any) -> Any:
    common = {"max_length": None} if kind is not trl.GRPOConfig else {}
    return kind(**settings(folder, accumulation, **{"bf16": False, **common, **others}))


def sft(folder: Path, loss: LossLike | str, accumulation: int, rows: int = 8, **others: Any) -> Any:
    data = datasets.Dataset.from_list(
        [{"prompt": p, "completion": a} for p, a in zip(PROMPTS, ANSWERS, strict=True)][:rows]
    )
    return with_loss(trl.SFTTrainer, loss)(
        model=model(),
        args=config(trl.SFTConfig, folder, accumulation, **others),
        train_dataset=data,
        processing_class=build_tiny_tokenizer(),
    )


def sft_datum(row: dict[str, Any]) -> Datum:
    prompt = sum(label == -100 for label in row["labels"])
    return datum(row["input_ids"][:prompt], row["input_ids"][prompt:])


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(get_loss("dft"), id="dft"),
        pytest.param(
            get_loss("focal", reduction="seq-mean-token-mean") - 0.1 * get_loss("entropy_bonus"),
            id="two denominators, and entropy",
        ),
    ],
)
def test_sft_has_the_gradient_of_the_whole_batch(tmp_path: Path, loss: LossLike, accumulation: int) -> None:
    caught, trainer = catcher(), sft(tmp_path, loss, accumulation)
    trainer.add_callback(caught)
    trainer.train()
    assert_same(
        caught.steps[0], wanted_gradients(model(), loss, [sft_datum(row) for row in trainer.train_dataset]), ROUNDING
    )


def test_sequences_that_lie_in_one_row_have_the_same_gradient_in_a_loss_per_token(tmp_path: Path) -> None:
    caught, trainer = catcher(), sft(tmp_path, "dft", 2, padding_free=True)
    trainer.add_callback(caught)
    trainer.train()
    data = [sft_datum(row) for row in trainer.train_dataset]
    assert_same(caught.steps[0], wanted_gradients(model(), get_loss("dft"), data), ROUNDING)


def test_a_last_step_of_fewer_rows_counts_only_them(tmp_path: Path) -> None:
    loss = get_loss("dft")
    epoch = {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 3}
    caught, trainer = catcher(), sft(tmp_path, loss, 2, rows=7, train_sampling_strategy="sequential", **epoch)
    trainer.add_callback(caught)
    trainer.train()
    data = [sft_datum(row) for row in trainer.train_dataset]
    assert len(caught.steps) == 2
    assert_same(caught.steps[0], wanted_gradients(model(), loss, data[:6]), ROUNDING)
    assert_same(caught.steps[1], wanted_gradients(model(), loss, data[6:]), ROUNDING)


def dpo(folder: Path, loss: LossLike | str, accumulation: int, **others: Any) -> Any:
    rows = zip(PROMPTS, ANSWERS, WORSE, strict=True)
    return with_loss(trl.DPOTrainer, loss)(
        model=model(),
        ref_model=model(seed=1),
        args=config(trl.DPOConfig, folder, accumulation, **others),
        train_dataset=datasets.Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]),
        processing_class=build_tiny_tokenizer(),
    )


def dpo_data(trainer: Any) -> list[Datum]:
    """Pairs as datums 2i and 2i + 1, with the reference's logprobs."""
    data = []
    for row, side in itertools.product(trainer.train_dataset, ("chosen_ids", "rejected_ids")):
        bare = datum(row["prompt_ids"], row[side])
        with torch.no_grad():
            (reference,) = outputs(trainer.ref_model, [bare])["logprobs"]
        data.append(
            datum(row["prompt_ids"], row[side], ref_logprobs=[0.0, *reference.tolist()], label=side == "chosen_ids")
        )
    return data


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(get_loss("dpo", beta=0.3), id="dpo"),
        pytest.param(
            get_loss("simpo") + 0.2 * get_loss("cross_entropy", reduction="token-mean"), id="pairs and tokens"
        ),
        pytest.param(get_loss("apo_zero_unpaired"), id="labelled responses"),
    ],
)
def test_dpo_has_the_gradient_of_the_whole_batch(tmp_path: Path, loss: LossLike, accumulation: int) -> None:
    caught, trainer = catcher(), dpo(tmp_path, loss, accumulation)
    trainer.add_callback(caught)
    trainer.train()
    assert_same(caught.steps[0], wanted_gradients(model(), loss, dpo_data(trainer)), ROUNDING)


def test_an_adapter_s_reference_is_the_model_without_it(tmp_path: Path) -> None:
    from peft import LoraConfig

    loss = get_loss("dpo")
    rows = zip(PROMPTS, ANSWERS, WORSE, strict=True)
    trainer = with_loss(trl.DPOTrainer, loss)(
        model=model(),
        args=config(trl.DPOConfig, tmp_path, 2),
        train_dataset=datasets.Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows]),
        processing_class=build_tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    caught = catcher()
    trainer.add_callback(caught)
    trainer.train()
    data = []
    for row, side in itertools.product(trainer.train_dataset, ("chosen_ids", "rejected_ids")):
        with torch.no_grad(), trainer.model.disable_adapter():
            (reference,) = outputs(trainer.model, [datum(row["prompt_ids"], row[side])])["logprobs"]
        data.append(datum(row["prompt_ids"], row[side], ref_logprobs=[0.0, *reference.tolist()]))
    assert_same(caught.steps[0], wanted_gradients(trainer.model, loss, data), ROUNDING)


def test_an_evaluation_is_the_loss_of_its_rows(tmp_path: Path) -> None:
    loss = get_loss("dft", reduction="seq-mean-token-mean")
    trainer = sft(tmp_path, loss, 2, per_device_eval_batch_size=8)
    evaluated = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    data = [sft_datum(row) for row in trainer.train_dataset]
    with torch.no_grad():
        wanted, _ = loss(data, outputs(model(), data)["logprobs"])
    assert evaluated == pytest.approx(wanted.item(), rel=1e-5)
    pairs = dpo(tmp_path, get_loss("dpo", beta=0.3), 2, per_device_eval_batch_size=8)
    evaluated = pairs.evaluate(pairs.train_dataset)
    data = dpo_data(pairs)
    with torch.no_grad():
        wanted, metrics = get_loss("dpo", beta=0.3)(data, outputs(model(), data)["logprobs"])
    assert evaluated["eval_loss"] == pytest.approx(wanted.item(), rel=1e-5)
    assert evaluated["eval_rewards/accuracies"] == pytest.approx(metrics["accuracy"])
    assert evaluated["eval_rewards/margins"] == pytest.approx(0.3 * metrics["margin"], rel=1e-4), "in the loss's beta"


def length_reward(completions: list[str], completion_ids: list[list[int]], **others: Any) -> list[float]:
    """More for low byte values: something that a policy can learn in a few steps."""
    return [-sum(ids) / (100.0 * len(ids)) for ids in completion_ids]


def grpo(folder: Path, loss: LossLike | str, accumulation: int, **others: Any) -> Any:
    arguments = {"num_generations": 4, "max_completion_length": 6, "temperature": 1.0, **others}
    model().save_pretrained(folder / "model")  # TRL loads the reference from where the model lies
    return with_loss(trl.GRPOTrainer, loss)(
        model=transformers.LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float64),
        reward_funcs=length_reward,
        args=config(trl.GRPOConfig, folder, accumulation, **arguments),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=build_tiny_tokenizer(),
    )


def sampled(trainer: Any) -> list[Datum]:
    """The samples that TRL drew, as datums."""
    data = []
    for batch in trainer._buffered_inputs:
        logprobs = batch.get("old_per_token_logps")
        for i in range(len(batch["prompt_ids"])):
            prompt = batch["prompt_ids"][i][batch["prompt_mask"][i] == 1].tolist()
            kept = batch["completion_mask"][i] == 1
            response = batch["completion_ids"][i][kept].tolist()
            bare = datum(prompt, response)
            with torch.no_grad():
                (own,) = outputs(model(), [bare])["logprobs"]
            sampling = own if logprobs is None else torch.cat([own[: len(prompt) - 1], logprobs[i][kept]])
            inputs: dict[str, Any] = {"sampling_logprobs": [0.0, *sampling.tolist()]}
            inputs["advantages"] = [float(batch["advantages"][i])] * (len(prompt) + len(response))
            if "ref_per_token_logps" in batch:
                reference: Tensor = batch["ref_per_token_logps"][i][kept]
                inputs["ref_logprobs"] = [-1.0] * len(prompt) + reference.tolist()
            data.append(datum(prompt, response, **inputs))
    return data


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize(
    ("loss", "others"),
    [
        pytest.param(get_loss("grpo", kl_coefficient=0.0), {}, id="grpo"),
        pytest.param(get_loss("gspo") + 0.1 * get_loss("reinforce", reduction="token-mean"), {}, id="two denominators"),
    ],
)
def test_grpo_has_the_gradient_of_the_whole_batch(
    tmp_path: Path, loss: LossLike, others: dict[str, Any], accumulation: int
) -> None:
    caught, trainer = catcher(), grpo(tmp_path, loss, accumulation, **others)
    trainer.add_callback(caught)
    trainer.train()
    assert_same(caught.steps[0], wanted_gradients(model(), loss, sampled(trainer)), ROUNDING)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_grpo_is_pulled_to_the_reference_that_beta_loads(tmp_path: Path, accumulation: int) -> None:
    loss = get_loss("grpo", kl_coefficient=0.5)
    caught, trainer = catcher(), grpo(tmp_path, loss, accumulation, beta=0.5)
    with torch.no_grad():
        for one in trainer.ref_model.parameters():
            one.add_(0.05)  # else the KL's gradient would be 0 at the first step
    trainer.add_callback(caught)
    trainer.train()
    assert_same(caught.steps[0], wanted_gradients(model(), loss, sampled(trainer)), ROUNDING)


def test_a_step_whose_completions_were_all_cut_off_moves_nothing(tmp_path: Path) -> None:
    caught = catcher()
    trainer = grpo(
        tmp_path, get_loss("grpo", kl_coefficient=0.0), 2, mask_truncated_completions=True, max_completion_length=1
    )
    trainer.add_callback(caught)
    trainer.train()
    assert not any(batch["completion_mask"].any() for batch in trainer._buffered_inputs)
    assert not any(one.any() for one in caught.steps[0].values())


def test_samples_that_are_used_again_keep_the_logprobs_they_were_drawn_with(tmp_path: Path) -> None:
    caught = catcher()
    trainer = grpo(
        tmp_path,
        get_loss("grpo", kl_coefficient=0.0),
        2,
        num_iterations=2,
        max_steps=2,
        learning_rate=1e-2,
        optim="sgd",
    )
    trainer.add_callback(caught)
    trainer.train()
    # the second step reads the same samples: at the moved model its gradient is another, and the clip counts
    moved = [max(float((caught.steps[1][n] - caught.steps[0][n]).abs().max()) for n in caught.steps[0])]
    assert moved[0] > 1e-6
    assert all("old_per_token_logps" in batch for batch in trainer._buffered_inputs)


def test_dft_learns_its_answers_in_trl(tmp_path: Path) -> None:
    trainer = sft(tmp_path, "dft", 2, max_steps=15, learning_rate=1e-2)
    trainer.train()
    logged = [one for one in trainer.state.log_history if "loss" in one]
    assert logged[-1]["lossbook/nll"] < 0.8 * logged[0]["lossbook/nll"]
    assert logged[-1]["mean_token_accuracy"] > logged[0]["mean_token_accuracy"], "TRL's own metrics stay"


def test_grpo_earns_more_in_trl(tmp_path: Path) -> None:
    trainer = grpo(
        tmp_path,
        get_loss("grpo", kl_coefficient=0.0),
        2,
        max_steps=15,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    trainer.train()
    rewards = [one["reward"] for one in trainer.state.log_history if "reward" in one]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert not any("clip_ratio" in name for one in trainer.state.log_history for name in one), (
        "those are of TRL's epsilon"
    )
    assert any("lossbook/clip_fraction" in one for one in trainer.state.log_history)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda d: sft(d, "dft", 1, loss_type="dft"), "loss_type='dft' is a setting", id="sft: loss_type"),
        pytest.param(
            lambda d: sft(d, get_loss("dft", reduction="seq-mean-token-mean"), 1, padding_free=True),
            "dft couples a whole datum, and padding_free",
            id="sft: rows put into one",
        ),
        pytest.param(
            lambda d: sft(d, "ppo", 1),
            "ppo reads 'sampling_logprobs', 'advantages', and SFTTrainer gives",
            id="sft: inputs",
        ),
        pytest.param(lambda d: sft(d, "z_loss", 1), "z_loss reads 'logsumexp'", id="sft: an output"),
        pytest.param(lambda d: dpo(d, "dpo", 1, loss_type=["ipo"]), "loss_type=", id="dpo: loss_type"),
        pytest.param(lambda d: dpo(d, "dpo", 1, label_smoothing=0.1), "label_smoothing=0.1", id="dpo: label smoothing"),
        pytest.param(lambda d: dpo(d, "dpo", 1, beta=0.2), "beta=0.2", id="dpo: another beta"),
        pytest.param(
            lambda d: dpo(d, "dpo", 1, precompute_ref_log_probs=True), "precompute_ref_log_probs", id="dpo: sums"
        ),
        pytest.param(lambda d: dpo(d, "aot", 2), "aot couples a whole batch", id="dpo: a batch that is cut"),
        pytest.param(lambda d: grpo(d, "dapo", 1, loss_type="grpo"), "loss_type='grpo'", id="grpo: loss_type"),
        pytest.param(lambda d: grpo(d, "dapo", 1, epsilon=0.3), "epsilon=0.3", id="grpo: epsilon"),
        pytest.param(
            lambda d: grpo(d, "dapo", 1, beta=0.1), "beta=0.1 is the KL", id="grpo: a KL that would be dropped"
        ),
        pytest.param(lambda d: grpo(d, "grpo", 1), "beta=0 loads no reference", id="grpo: no reference"),
        pytest.param(
            lambda d: grpo(d, "grpo", 1, beta=0.1), "beta=0.1 and the loss's 0.001", id="grpo: two coefficients"
        ),
        pytest.param(
            lambda d: grpo(d, "dapo", 4, steps_per_generation=2),
            "must be a multiple of",
            id="grpo: samples not drawn yet",
        ),
        pytest.param(lambda d: grpo(d, "dapo+token_truncate", 1), "rollout_logprobs", id="grpo: no rollout"),
        pytest.param(lambda d: with_loss(dict, "dft"), "dict is none of TRL's", id="no trainer of TRL"),
    ],
)
def test_what_contradicts_the_loss_is_refused_in_one_line(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(LossbookError, match=message) as refused:
        make(tmp_path)
    assert "\n" not in str(refused.value)
