"""Reinforcement learning: a policy answers, its answers are rewarded, and a policy loss makes better ones likelier.

    lossbook train rl --task letter_counting --model HuggingFaceTB/SmolLM2-135M-Instruct --rl-loss-method dapo
    lossbook train rl --data math.jsonl --reward my_rewards:short --kl-coefficient 0.001
    lossbook train rl --environment guess_number --off-policy-steps 1 --rollout-correction token_truncate

Data: a reasoning-gym task; JSON Lines of {"prompt": ..., "answer": ...}, answers compared by math-verify or by a function
`reward(answer, row) -> float`; or an environment of many turns (`cookbook/environments`).

What to watch. `reward`, the mean over a step's answers, must rise; it is as noisy as answers are few. At step 0 it must
not be 0: a policy that never earns anything learns nothing, so start from one that sometimes does (`train sft`, then
--start-from). `zero_advantage_groups` is the share of groups whose answers all earned the same and teach nothing: near 1
the problems are too hard or too easy. `sampler_entropy`, nats a token, falls slowly; near 0 all answers are alike and
learning stops. `mismatch_k3` says that sampler and trainer are the same policy: below 1e-4 on policy in float32, above
0.01 they are not, and --rollout-correction is due. `clip_fraction` is the share of tokens beyond the clip: 0 with one
update a step, 0.01 to 0.2 with several. `truncated_fraction` near 1 says that max_tokens is too small. `held_out_score`
is the mean reward of the likeliest answers to problems never trained on.
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
from ..trainer import TrainingClient
from ..trainer.responses import OptimStepResponse, merge_outputs
from .environments import Problem, ProblemSettings, load_problems
from .loop import Loop, begin, finish
from .rollouts.batches import ADVANTAGES, Collected, Collector, Overlong, datums_of
from .rollouts.episodes import Player, Rollout
from .rollouts.losses import mismatch, policy_loss, reads, with_reference, with_trainer_logprobs
from .run.configs import RecipeConfig
from .run.names import SAMPLES
from .run.runs import Run

#: Metrics that the display has room for.
SHOWN = ("reward", "response_length", "sampler_entropy", "grad_norm")


class RLConfig(ProblemSettings, RecipeConfig):
    """Settings of the recipe; every field is a flag."""

    out: Path = Field(Path("runs/rl"), description="folder of the run: settings, metrics, checkpoints, adapter")
    loss: Annotated[str, arg(aliases=("--rl-loss-method",))] = Field(
        "grpo", description="grpo, dapo, gspo-token, any policy loss (`lossbook losses list`) or module:function"
    )
    learning_rate: float = Field(1e-4, gt=0)
    steps: int = Field(100, ge=1, description="batches of rollouts")
    problems_per_step: int = Field(8, ge=1, description="problems that a step's rollouts are about")
    group_size: int = Field(8, ge=1, description="answers to each problem")
    max_tokens: int = Field(64, ge=1, description="tokens an answer may have")
    max_length: int | None = Field(None, ge=2, description="tokens after which an episode gets no further turn")
    temperature: float = Field(1.0, gt=0, description="of sampling; at any other than 1 logprobs are biased")
    allow_biased: bool = Field(False, description="take a temperature other than 1 all the same")
    advantages: str = Field("group", description=f"how rewards become advantages: {', '.join(ADVANTAGES)}")
    dynamic_sampling: int = Field(0, ge=0, description="times that groups of equal rewards are replaced by new ones")
    overlong: Overlong = Field("keep", description="truncated answers: keep, mask (no gradient), soft (DAPO's penalty)")
    overlong_buffer: int | None = Field(
        None, ge=1, description="tokens over which the penalty rises to 1; max_tokens/4"
    )
    minibatches: int = Field(1, ge=1, description="optimizer steps in which a step's rollouts are used up")
    passes: int = Field(1, ge=1, description="times that a step's rollouts are used")
    kl_coefficient: float | None = Field(None, ge=0, description="of the KL to the weights at the start")
    rollout_correction: str | None = Field(
        None, description="token_truncate, sequence_mask, ...: weigh by trainer over sampler"
    )
    off_policy_steps: int = Field(0, ge=0, le=1, description="1: the next rollouts are sampled beside training")
    samples: int = Field(4, ge=0, description="rollouts of each step that samples.jsonl records")

    @model_validator(mode="after")
    def _possible(self) -> RLConfig:
        if self.temperature != 1 and not self.allow_biased:
            raise ValueError("temperature other than 1 makes the logprobs biased; take that with --allow-biased")
        if self.minibatches > self.problems_per_step * self.group_size:
            raise ValueError(f"{self.minibatches} minibatches are more than the rollouts of a step")
        return self


def main(config: RLConfig) -> dict[str, float]:
    """Train; returns the last value of every metric. After Ctrl-C it saves and raises SystemExit(130)."""
    loss = policy_loss(config)  # unknown ids, settings and names end here, before anything is loaded
    check_advantages(config.advantages)
    problems, held_out = load_problems(config, config.seed)
    run, training = begin(config)
    reference = training.create_reference_client() if reads(loss, "ref_logprobs") else None
    player = Player(training.get_tokenizer(), config.max_tokens, config.max_length, config.temperature)
    collector = Collector(config, player, problems, training)
    with collector, Loop(config, run, training, config.steps, keep=collector.keep) as loop:
        collector.restore(loop.kept)
        if loop.start == 0:
            loop.log_evaluation(0, evaluate(0, player, held_out, training, run))
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
            loop.look(step, loss, batches[-1], outputs[-1])  # the last: of several its ratios have moved most
            record(run, step, "training", rollouts, config.samples)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, evaluate(step, player, held_out, training, run))
    return finish(run, training)


def check_advantages(name: str) -> None:
    """Raise ConfigError for a name that no advantages have."""
    if name not in ADVANTAGES:
        hint = did_you_mean(name, ADVANTAGES)
        raise ConfigError(f"no advantages are called {name!r}.{hint} There are {', '.join(ADVANTAGES)}")


def minibatches(datums: Sequence[Datum], config: RLConfig, step: int) -> list[list[Datum]]:
    """A step's datums, `passes` times, each time in an order of its own and cut into `minibatches` parts."""
    found: list[list[Datum]] = []
    for number in range(config.passes):
        order = np.random.default_rng((config.seed, step, number)).permutation(len(datums))
        parts = np.array_split(order, min(config.minibatches, len(datums)))
        found += [[datums[i] for i in part] for part in parts]
    return found


def evaluate(
    step: int, player: Player, held_out: Sequence[Problem], training: TrainingClient, run: Run
) -> dict[str, float]:
    """The mean reward of the likeliest answers to held-out problems; some are recorded."""
    if not held_out:
        return {}
    greedy = replace(player, temperature=0.0)
    groups = greedy.play(training.save_weights_and_get_sampling_client(), held_out, 1, (0,))
    record(run, step, "held out", Collected(groups, {}), 4)
    return {"held_out_score": float(np.mean([rollout.reward for (rollout,) in groups]))}


def record(run: Run, step: int, kind: str, rollouts: Collected, count: int) -> None:
    """Write some rollouts to samples.jsonl."""
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
    return OptimStepResponse({key: float(np.mean([one.metrics[key] for one in updates])) for key in updates[0].metrics})
