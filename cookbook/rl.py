"""Reinforcement learning: a policy answers, its answers are rewarded, and a policy loss makes better ones likelier.

    lossbook train rl --task letter_counting --model HuggingFaceTB/SmolLM2-135M-Instruct --rl-loss-method dapo
    lossbook train rl --data math.jsonl --reward my_rewards:short --kl-coefficient 0.001
    lossbook train rl --environment guess_number --off-policy-steps 1 --rollout-correction token_truncate
    lossbook train rl --data math.jsonl --sampler-url http://localhost:8000 --sampler-adapters /shared/adapters

Data: a reasoning-gym task; JSON Lines of {"prompt": ..., "answer": ...}, with answers compared by math-verify or scored by a
function `reward(answer, row) -> float`; or an environment of several turns (`cookbook/environments`).

What to watch. `reward`, the mean over a step's answers, must rise; it is noisy where answers are few. At step 0 it must
not be 0: a policy that is never rewarded learns nothing, so start from one that sometimes is (`train sft`, then
--start-from). `zero_advantage_groups` is the share of groups whose answers all have one reward and teach nothing: near 1
the problems are too hard or too easy. `sampler_entropy`, nats per token, falls slowly; near 0 all answers are alike and
learning stops. `mismatch_k3` compares sampler and trainer: below 1e-4 on policy in float32 they are the same policy, above
0.01 they are not, and --rollout-correction is needed. `clip_fraction` is the share of clipped tokens: 0 with one update per
step, 0.01 to 0.2 with several. `truncated_fraction` near 1 means that max_tokens is too small. `held_out_score` is the mean
reward of the greedy answers to problems never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator
from tyro.conf import arg

from ..datums.errors import ConfigError, did_you_mean
from ..datums.types import Datum
from ..trainer.responses import OptimStepResponse, merge_outputs
from .environments import Problem, ProblemSettings, load_problems
from .loop import Loop, begin, finish, introduce
from .rollouts.collector import ADVANTAGES, OVER_THE_BATCH, Overlong, RolloutCollector, StepRollouts, datums_of
from .rollouts.episodes import Policy, Rollout, RolloutRunner
from .rollouts.losses import mismatch, policy_loss, reads, with_reference, with_trainer_logprobs
from .rollouts.server.settings import SamplerSettings, policy_of
from .run.configs import RecipeConfig
from .run.interrupts import restarted
from .run.names import SAMPLES
from .run.runs import Run

#: The metrics in the progress display.
SHOWN = ("reward", "response_length", "sampler_entropy", "grad_norm")


class RLConfig(ProblemSettings, SamplerSettings, RecipeConfig):
    """Settings of the recipe; each field is a flag."""

    out: Path = Field(Path("runs/rl"), description="the run's folder: settings, metrics, checkpoints, adapter")
    loss: Annotated[str, arg(aliases=("--rl-loss-method",))] = Field(
        "grpo", description="grpo, dapo, gspo-token, any policy loss (`lossbook losses list`) or module:function"
    )
    learning_rate: float = Field(1e-4, gt=0, description="the optimizer's learning rate after warmup")
    steps: int = Field(100, ge=1, description="steps, each with rollouts of its own")
    problems_per_step: int = Field(8, ge=1, description="problems per step")
    group_size: int = Field(8, ge=1, description="answers per problem")
    max_tokens: int = Field(64, ge=1, description="most tokens in an answer")
    max_length: int | None = Field(None, ge=2, description="an episode of this many tokens gets no further turn")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; any other than 1 biases the logprobs")
    allow_biased: bool = Field(False, description="allow a temperature other than 1")
    advantages: str = Field("group", description=f"advantages from rewards: {', '.join(ADVANTAGES)}")
    dynamic_sampling: int = Field(0, ge=0, description="how often to replace groups of equal rewards by new ones")
    overlong: Overlong = Field(
        "keep", description="truncated answers: keep, mask (no gradient) or soft (DAPO's penalty)"
    )
    overlong_buffer: int | None = Field(
        None, ge=1, description="tokens over which the soft penalty rises to 1; None: max_tokens/4"
    )
    minibatches: int = Field(
        1, ge=1, description="minibatches, each an optimizer step, that a step's rollouts are divided into"
    )
    passes: int = Field(1, ge=1, description="passes over a step's rollouts")
    kl_coefficient: float | None = Field(None, ge=0, description="coefficient of the KL to the weights at the start")
    rollout_correction: str | None = Field(
        None, description="importance weights of trainer over sampler: token_truncate, sequence_mask, ..."
    )
    off_policy_steps: int = Field(0, ge=0, le=1, description="1: sample the next step's rollouts during training")
    samples: int = Field(4, ge=0, description="rollouts per step that samples.jsonl records")

    @model_validator(mode="after")
    def _possible(self) -> RLConfig:
        if self.temperature != 1 and not self.allow_biased:
            raise ValueError("a temperature other than 1 biases the logprobs; allow that with --allow-biased")
        if self.minibatches > self.problems_per_step * self.group_size:
            raise ValueError(f"{self.minibatches} minibatches are more than the rollouts of a step")
        if self.group_size == 1 and self.advantages in ADVANTAGES:
            self._check_single_answers()
        return self

    def _check_single_answers(self) -> None:
        """One answer per problem has no other to be compared with, unless advantages compare all answers of a step."""
        others = " or ".join(OVER_THE_BATCH)
        if self.advantages not in OVER_THE_BATCH:
            raise ValueError(
                f"with one answer per problem all advantages {self.advantages!r} are 0, so nothing would be learned: give "
                f"--group-size 2 or more, or --advantages {others}"
            )
        if self.problems_per_step == 1:
            raise ValueError("a step of one answer has nothing to compare it with: give --problems-per-step 2 or more")
        if self.dynamic_sampling:
            raise ValueError(
                "--dynamic-sampling replaces groups of equal rewards, and every group of one answer is such"
            )


@restarted
def main(config: RLConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    loss = policy_loss(config)  # raises for unknown ids and settings, before anything is loaded
    check_advantages(config.advantages)
    problems, held_out = load_problems(config, config.seed)
    run, training = begin(config)
    introduce(config, run, training, rows=len(problems), steps=config.steps)
    reference = training.create_reference_client() if reads(loss, "ref_logprobs") else None
    runner = RolloutRunner(training.get_tokenizer(), config.max_tokens, config.max_length, config.temperature)
    with (
        policy_of(config, training, run.path) as policy,
        RolloutCollector(config, runner, problems, policy) as collector,
        Loop(config, run, training, config.steps, keep=collector.keep) as loop,
    ):
        collector.restore(loop.kept)
        if loop.start == 0:
            loop.log_evaluation(0, evaluate(0, runner, held_out, policy, run))
        for step in loop:
            rollouts = collector.get(step, is_last=step == config.steps)
            datums = datums_of(collector, rollouts.groups, config.advantages, allow_biased=config.allow_biased)
            if reads(loss, "rollout_logprobs"):
                datums = with_trainer_logprobs(datums, training)
            if reference is not None:
                datums = with_reference(datums, reference)
            batches, outputs, updates = minibatches(datums, config, step), [], []
            for batch in batches:
                outputs.append(training.forward_backward(batch, loss).result())
                updates.append(training.optim_step(config.adam_params(step, config.steps)).result())
            used = [datum for batch in batches for datum in batch]
            more = rollouts.metrics | mismatch(batches[0], outputs[0])
            loop.log(step, used, merge_outputs(outputs), mean_update(updates), more, shown=SHOWN)
            loop.record(step, loss, batches[-1], outputs[-1])  # the last minibatch, whose ratios have moved most
            record_rollouts(run, step, "training", rollouts, config.samples)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, evaluate(step, runner, held_out, policy, run))
    return finish(run, training)


def check_advantages(name: str) -> None:
    """Raise ConfigError for an unknown name of advantages."""
    if name not in ADVANTAGES:
        hint = did_you_mean(name, ADVANTAGES)
        raise ConfigError(f"no advantages are called {name!r}.{hint} There are {', '.join(ADVANTAGES)}")


def minibatches(datums: Sequence[Datum], config: RLConfig, step: int) -> list[list[Datum]]:
    """A step's datums, `passes` times in a new order, each time divided into `minibatches` parts."""
    batches: list[list[Datum]] = []
    for number in range(config.passes):
        order = np.random.default_rng((config.seed, step, number)).permutation(len(datums))
        parts = np.array_split(order, min(config.minibatches, len(datums)))
        batches += [[datums[i] for i in part] for part in parts]
    return batches


def evaluate(
    step: int, runner: RolloutRunner, held_out: Sequence[Problem], policy: Policy, run: Run
) -> dict[str, float]:
    """The mean reward of greedy answers to held-out problems; some are recorded."""
    if not held_out:
        return {}
    greedy = replace(runner, temperature=0.0)
    groups = greedy.run(policy.save_weights_and_get_sampling_client(), held_out, 1, (0,))
    record_rollouts(run, step, "held out", StepRollouts(groups, {}), 4)
    return {"held_out_score": float(np.mean([rollout.reward for (rollout,) in groups]))}


def record_rollouts(run: Run, step: int, kind: str, rollouts: StepRollouts, count: int) -> None:
    """Append `count` rollouts to samples.jsonl."""
    for rollout in [rollout for group in rollouts.groups for rollout in group][:count]:
        run.append(SAMPLES, {"step": step, "kind": kind, **_sample(rollout)})


def _sample(rollout: Rollout) -> dict[str, Any]:
    answer = "\n".join(rollout.answers)
    return {
        "prompt": rollout.problem,
        "answer": answer,
        "stop_reason": "length" if rollout.is_truncated else "stop",
        "reward": rollout.reward,
        "tokens": len(rollout.response_tokens),
    }


def mean_update(updates: Sequence[OptimStepResponse]) -> OptimStepResponse:
    """The optimizer's numbers, each averaged over a step's updates."""
    means = {key: float(np.mean([one.metrics[key] for one in updates])) for key in updates[0].metrics}
    return OptimStepResponse(means, updates[-1].step, float(np.mean([one.learning_rate for one in updates])))
