"""The recipe `rl`: it learns with any policy loss, on and off policy, and goes on after kill -9 as if nothing had happened."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from pydantic import ValidationError
from torch import Tensor

import lossbook as lb
from lossbook.cookbook import rl
from lossbook.cookbook.cli import main as command_line
from lossbook.cookbook.rl import RLConfig
from lossbook.cookbook.rollouts.collector import ADVANTAGES
from lossbook.cookbook.rollouts.entropy import EntropyBonus
from lossbook.cookbook.rollouts.losses import policy_loss, reads
from lossbook.cookbook.run.runs import read_metrics, read_rows
from lossbook.datums.errors import (
    ConfigError,
    LossConfigError,
    LossContractError,
    MissingInput,
    RewardError,
    UnknownLossError,
)
from lossbook.losses.loss.loss import Mixture
from lossbook.losses.registry import spec_of
from lossbook.trainer.model.tiny import build_tiny_tokenizer

#: Settings without a default.
NEEDED = {"dr_grpo": {"norm_length": 6}}
#: Numbers that say how long something took.
TIMES = ("tokens_per_second", "sampling_seconds")
ROOT = Path(rl.__file__).resolve().parents[1]


def even(answer: str, row: Mapping[str, Any]) -> float:
    """The share of characters with an even code: something that the tiny model does by chance and can learn."""
    return sum(ord(character) % 2 == 0 for character in answer) / max(len(answer), 1)


def of_my_own(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, *, scale: float = 1.0) -> Tensor:
    """A policy loss a token, never registered."""
    return -scale * advantages * (logprobs - sampling_logprobs).exp()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A config for the tiny model whose reward is `even`; `HERE` in a value is this module."""
    monkeypatch.setitem(sys.modules, "functions_of_a_test", sys.modules[__name__])

    def make(out: str = "run", **changes: Any) -> RLConfig:
        settings = {
            "task": "gcd",
            "reward": "HERE:even",
            "task_size": 16,
            "held_out": 3,
            "all_weights": True,
            "steps": 4,
        }
        settings |= {"problems_per_step": 4, "group_size": 4, "max_tokens": 6, "learning_rate": 3e-3, **changes}
        given = {k: v.replace("HERE", "functions_of_a_test") if isinstance(v, str) else v for k, v in settings.items()}
        return RLConfig.model_validate({"out": tmp_path / out, **given})

    return make


def numbers(folder: Path) -> list[dict[str, Any]]:
    """All that was recorded, apart from times."""
    return [
        {key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_the_reward_rises_and_a_step_records_what_one_wants_to_watch(make: Any) -> None:
    config = make(steps=20, group_size=8)
    rl.main(config)
    rows = [row for row in numbers(config.out) if "reward" in row]
    assert sum(row["reward"] for row in rows[-5:]) > sum(row["reward"] for row in rows[:5]) + 0.3
    watched = {"reward", "response_length", "truncated_fraction", "zero_advantage_groups", "resampled_groups", "turns"}
    watched |= {"mismatch_k1", "mismatch_k3", "sampler_entropy", "clip_fraction", "ref_kl", "grad_norm", "loss"}
    assert watched <= rows[0].keys()
    assert rows[0]["ref_kl"] == pytest.approx(0, abs=1e-6)  # the policy is still the reference
    assert rows[-1]["ref_kl"] > 0.01
    assert all(abs(row["mismatch_k3"]) < 1e-6 for row in rows)  # on policy in float32
    assert rows[0]["sampler_entropy"] == pytest.approx(math.log(260), rel=0.1)  # random weights know nothing
    samples = read_rows(config.out / "samples.jsonl")
    assert {"step", "prompt", "answer", "reward", "stop_reason", "kind"} <= samples[0].keys()
    assert [row["step"] for row in samples if row["kind"] == "held out"] == [0, 0, 0, 20, 20, 20]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in lb.list_losses() if spec_of(name).family == "policy"),
        "gspo-token",
        "trl:grpo",
        "ppo+token_mask",
        "functions_of_a_test:of_my_own",
    ],
)
def test_any_policy_loss_trains_on_rollouts(make: Any, name: str) -> None:
    config = make(loss=name, loss_config=NEEDED.get(name, {}), steps=1, held_out=0)
    assert rl.main(config)["grad_norm"] > 0


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "reinforce_plus_plus"])
def test_one_answer_per_problem_is_refused_where_all_advantages_would_be_0(name: str, make: Any) -> None:
    with pytest.raises(ValidationError, match=f"with one answer per problem all advantages '{name}' are 0"):
        make(group_size=1, advantages=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problems_per_step": 1}, "a step of one answer has nothing to compare it with"),
        ({"dynamic_sampling": 1}, "every group of one answer is such"),
    ],
)
def test_one_answer_per_problem_needs_others_to_be_compared_with(
    settings: dict[str, Any], message: str, make: Any
) -> None:
    with pytest.raises(ValidationError, match=message):
        make(group_size=1, advantages="reinforce_plus_plus", **settings)


def test_one_answer_per_problem_trains_with_reinforce_plus_plus(make: Any) -> None:
    config = make(group_size=1, problems_per_step=8, advantages="reinforce_plus_plus", steps=2, held_out=0)
    rl.main(config)
    for row in numbers(config.out):
        assert (row["zero_advantage_groups"] == 1) == (row["grad_norm"] < 1e-9)
    assert any(row["grad_norm"] > 0 for row in numbers(config.out))


def test_gspo_token_is_taken_as_spelt_and_the_flag_has_the_name_that_others_know(make: Any, tmp_path: Path) -> None:
    flags = ["--task", "gcd", "--task-size", "2", "--held-out", "0", "--steps", "1", "--problems-per-step", "1"]
    flags += ["--group-size", "2", "--max-tokens", "2", "--out", str(tmp_path / "run")]
    assert command_line(["train", "rl", *flags, "--rl-loss-method", "gspo-token"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == "gspo-token"


def test_several_updates_a_step_use_every_rollout_as_often_as_asked(make: Any) -> None:
    config = make(steps=2, minibatches=3, passes=2, loss="dapo", samples=16)
    datums: list[Any] = list(range(16))
    batches = rl.minibatches(datums, config, step=1)
    assert [len(batch) for batch in batches] == [6, 5, 5, 6, 5, 5]
    assert sorted(sum(batches[:3], [])) == sorted(sum(batches[3:], [])) == datums  # noqa: RUF017
    assert batches[:3] != batches[3:]
    rl.main(config)
    first = numbers(config.out)[1]
    assert first["ratio_max"] > 1.01  # the later updates are off policy
    assert abs(first["mismatch_k3"]) < 1e-6  # measured before the first of them
    assert first["datums"] == 2 * 16  # a sum over the updates, uneven as they are, and so are the tokens
    samples = [row for row in read_rows(config.out / "samples.jsonl") if row["step"] == 1]
    tokens = sum(row["tokens"] for row in samples if row["kind"] == "training")
    assert first["response_tokens"] == 2 * tokens


# --- models that carry a state ----------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "eos_token_id": 256,
    "pad_token_id": 257,
    "bos_token_id": None,
}
STATEFUL: dict[str, Any] = {
    "Qwen3-Next": lambda: transformers.Qwen3NextConfig(
        **SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
    "Falcon-H1": lambda: transformers.FalconH1Config(
        **SMALL, head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
    ),
    "Mamba": lambda: transformers.MambaConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=8, eos_token_id=256, pad_token_id=257,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["Qwen3-Next", pytest.param("Falcon-H1", marks=pytest.mark.slow), "Mamba"])
def test_a_model_that_carries_a_state_along_the_row_is_trained_on_several_samples_of_several_prompts(
    make: Any, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    transformers.AutoModelForCausalLM.from_config(STATEFUL[kind]()).save_pretrained(model)
    build_tiny_tokenizer().save_pretrained(model)
    config = make(model=str(model), all_weights=False, rank=2, steps=3, problems_per_step=3, group_size=3, samples=9)
    numbers_at_the_end = rl.main(config)
    assert all(map(math.isfinite, numbers_at_the_end.values()))
    printed = capsys.readouterr().out
    assert "packs: no, layer 0" in printed
    assert "samples with the model's own cache" in printed
    rows = [row for row in numbers(config.out) if "reward" in row]
    assert len(rows) == 3
    assert all(abs(row["mismatch_k3"]) < 1e-6 for row in rows)  # the sampler's logprobs are the trainer's
    assert all(row["datums"] == 9 and row["grad_norm"] > 0 for row in rows)
    answers = [row for row in read_rows(config.out / "samples.jsonl") if row["kind"] == "training" and row["step"] == 1]
    assert len({row["answer"] for row in answers}) > 3  # also within a group


# --- the reference ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "is_needed"),
    [
        pytest.param({"loss": "grpo"}, True, id="grpo: its coefficient is 0.001"),
        pytest.param({"loss": "grpo", "kl_coefficient": 0.0}, False, id="grpo without KL"),
        pytest.param({"loss": "dapo"}, False, id="dapo: no KL"),
        pytest.param({"loss": "dapo", "kl_coefficient": 0.01}, True, id="dapo with a KL added"),
    ],
)
def test_reference_logprobs_are_computed_only_when_the_loss_reads_them(
    make: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], is_needed: bool
) -> None:
    made: list[int] = []
    create = lb.TrainingClient.create_reference_client

    def counted(self: Any) -> Any:
        made.append(1)
        return create(self)

    monkeypatch.setattr(lb.TrainingClient, "create_reference_client", counted)
    config = make(steps=1, held_out=0, **changes)
    last = rl.main(config)
    assert bool(made) == is_needed
    assert reads(policy_loss(config), "ref_logprobs") == is_needed
    assert any(key.endswith("ref_kl") and not math.isnan(value) for key, value in last.items()) == is_needed


def test_a_kl_coefficient_goes_into_the_loss_where_it_has_one_and_beside_it_where_not(make: Any) -> None:
    assert policy_loss(make(loss="grpo", kl_coefficient=0.5)).settings["kl_coefficient"] == 0.5  # type: ignore[union-attr]
    mixed = policy_loss(make(loss="gspo-token", kl_coefficient=0.5))
    assert isinstance(mixed, Mixture)
    assert [(factor, part.name, part.reduction) for factor, part in mixed.parts] == [
        (1.0, "gspo_token", "seq-mean-token-mean"),
        (0.5, "reference_kl", "seq-mean-token-mean"),
    ]


@pytest.mark.slow
def test_the_reference_of_a_resumed_run_is_still_the_weights_at_the_start(make: Any) -> None:
    whole, stopped = make("whole", save_every=2), make("stopped", save_every=2)
    rl.main(whole)
    rl.main(stopped.model_copy(update={"steps": 2}))
    rl.main(stopped.model_copy(update={"resume": True}))
    assert numbers(stopped.out)[-1] == numbers(whole.out)[-1]
    kept = [row for row in numbers(stopped.out) if row.get("ref_kl") is not None]
    assert kept == [row for row in numbers(whole.out) if row.get("ref_kl") is not None]


# --- off policy ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rollouts_sampled_ahead_are_those_of_the_weights_before_the_last_update(make: Any) -> None:
    sync, ahead = make("sync"), make("ahead", off_policy_steps=1)
    rl.main(sync)
    rl.main(ahead)
    on, off = ([row for row in numbers(config.out) if "reward" in row] for config in (sync, ahead))
    assert on[0] == off[0]  # nothing was updated yet
    assert on[1]["reward"] != off[1]["reward"]
    assert on[1].keys() == off[1].keys()
    assert all(row["mismatch_k3"] < 1e-6 for row in [*on, off[0]])
    assert all(row["mismatch_k3"] > 1e-4 for row in off[1:])  # an update lies between


def test_a_correction_reads_the_trainers_logprobs_and_the_samplers(make: Any) -> None:
    config = make(
        off_policy_steps=1,
        rollout_correction="token_truncate+reject_max_k3",
        loss="dapo",
        loss_config={"max_k3_high": 10.0},
        held_out=0,
    )
    rl.main(config)
    first, second, *_ = numbers(config.out)
    assert (first["rejected_max_k3"], first["effective_sample_size"]) == (0, pytest.approx(1, abs=1e-5))
    assert abs(first["rollout_kl_k3"]) < 1e-6 < 1e-4 < second["rollout_kl_k3"]
    assert second["rollout_kl_k3"] == pytest.approx(second["mismatch_k3"], rel=1e-3)
    assert second["ratio_max"] == pytest.approx(1, abs=1e-4)  # to the trainer's own, before its update


@pytest.mark.parametrize("off_policy_steps", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_run_records_what_an_uninterrupted_one_does_bit_for_bit(make: Any, off_policy_steps: int) -> None:
    settings: dict[str, Any] = {
        "off_policy_steps": off_policy_steps,
        "save_every": 2,
        "dynamic_sampling": 1,
        "steps": 5,
        "minibatches": 2,
        "entropy_target": 6.0,  # above the largest entropy of 260 tokens, so the coefficient rises with each update
    }
    whole, stopped = make("whole", **settings), make("stopped", **settings)
    rl.main(whole)
    seen = 0

    def stop(self: Any, step: int, *arguments: Any, **more: Any) -> Any:
        nonlocal seen
        seen = step
        if step == 4:
            raise RewardError("as if it had been killed in its fourth step")
        return get(self, step, *arguments, **more)

    get, rl.RolloutCollector.get = rl.RolloutCollector.get, stop  # type: ignore[method-assign]
    try:
        with pytest.raises(RewardError, match="step 4: as if it had been killed"):
            rl.main(stopped)
    finally:
        rl.RolloutCollector.get = get  # type: ignore[method-assign]
    assert seen == 4
    rl.main(stopped.model_copy(update={"resume": True}))
    assert numbers(stopped.out) == numbers(whole.out)
    assert read_rows(stopped.out / "samples.jsonl") == read_rows(whole.out / "samples.jsonl")
    rising = [row["entropy_coefficient"] for row in numbers(whole.out) if "entropy_coefficient" in row]
    assert rising == pytest.approx([0.005 * (2 * step - 1) for step in range(1, 6)])


def test_advantages_of_turns_train_on_episodes_of_several(make: Any) -> None:
    config = make(
        task=None, reward=None, environment="guess_number", advantages="gigpo", steps=1, max_tokens=4, held_out=0
    )
    assert rl.main(config)["grad_norm"] >= 0


def test_an_entropy_bonus_is_a_mean_over_tokens_beside_any_loss(make: Any) -> None:
    config = make(loss="dapo", entropy_coefficient=0.25, entropy_target=0.1, entropy_step=0.1, steps=2, held_out=0)
    bonus = EntropyBonus(config, policy_loss(config))
    assert bonus.coefficient == 0  # nothing is measured yet
    assert [(factor, part.name, part.reduction) for factor, part in bonus.loss.parts] == [
        (1.0, "dapo", "token-mean"),
        (0.0, "entropy_bonus", "token-mean"),
    ]
    rl.main(config)
    assert [row["entropy_coefficient"] for row in numbers(config.out)] == [0, 0]  # far above the target
    fixed = make(entropy_coefficient=0.25, loss_config={"kl_coefficient": 0.0})
    assert [(f, part.name) for f, part in EntropyBonus(fixed, policy_loss(fixed)).loss.parts][1] == (
        0.25,
        "entropy_bonus",
    )
    plain = make()
    assert EntropyBonus(plain, policy_loss(plain)).loss.name == "grpo"


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": "gsop-token"}, UnknownLossError, "Did you mean 'gspo-token'"),
        ({"loss": "dapo", "loss_config": {"clip_hihg": 1.3}}, LossConfigError, "Did you mean 'clip_high'"),
        ({"rollout_correction": "token_truncat"}, LossConfigError, "Did you mean 'token_truncate'"),
        ({"rollout_correction": "token_truncate+reject_mean_k4"}, LossConfigError, "Did you mean 'reject_mean_k"),
        ({"rollout_correction": "top_entropy"}, LossConfigError, "put it behind the loss, as in grpo.top_entropy"),
        ({"advantages": "centered"}, ConfigError, "Did you mean 'centred'"),
        ({"loss": "dpo"}, LossContractError, "over pairs"),
        ({"loss": "value_clip"}, MissingInput, "reads .*returns.*, which rollouts do not have"),
    ],
)
def test_a_misspelt_or_unfit_setting_is_refused_before_anything_is_loaded(
    make: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    monkeypatch.setattr(rl, "begin", lambda config: pytest.fail("a model was loaded"))
    with pytest.raises(error, match=message):
        rl.main(make(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.7}, "a temperature other than 1 biases the logprobs; allow that with --allow-biased"),
        ({"minibatches": 17}, "17 minibatches are more than the rollouts of a step"),
        ({"advantages": "gigpo"}, "advantages 'gigpo' compare turns, so they need an --environment of several"),
        ({"entropy_step": 0.1}, "entropy_step is for an --entropy-target only"),
        ({"entropy_highest": 0.1}, "entropy_highest is for an --entropy-target only"),
        (
            {"entropy_target": 1.0, "entropy_coefficient": 0.5, "entropy_highest": 0.1},
            "entropy_coefficient=0.5 is above entropy_highest",
        ),
        ({"entropy_coefficient": -0.1}, "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**changes)


def fails(answer: str, row: Mapping[str, Any]) -> float:
    """A reward function with a mistake in it."""
    raise KeyError("unit")


@pytest.mark.parametrize("off_policy_steps", [0, 1])
def test_a_mistake_in_a_reward_function_ends_the_run_with_its_name_the_step_the_question_and_the_answer(
    make: Any, off_policy_steps: int
) -> None:
    with pytest.raises(RewardError, match=r"step 1: reward \w+:fails failed on the question '.*GCD.*KeyError: 'unit'"):
        rl.main(make(reward="HERE:fails", held_out=0, off_policy_steps=off_policy_steps))
