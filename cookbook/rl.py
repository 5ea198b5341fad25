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
learning stops: then --entropy-target holds it up, and `entropy_coefficient` says by how much. `mismatch_k3` compares sampler and trainer: below 1e-4 on policy in float32 they are the same policy, above
0.01 they are not, and --rollout-correction is needed. `clip_fraction` is the share of clipped tokens: 0 with one update per
step, 0.01 to 0.2 with several. `truncated_fraction` near 1 means that max_tokens is too small. `held_out_score` is the mean
reward of the greedy answers to problems never trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..datums.errors import ConfigError, did_you_mean
from ..datums.types import Datum
from ..trainer.responses import OptimStepResponse, merge_outputs
from .environments import Problem, load_problems
from .loop import Loop, begin, finish, introduce
from .rollouts.collector import ADVANTAGES, TURN_ADVANTAGES, RolloutCollector, StepRollouts, datums_of
from .rollouts.entropy import EntropyBonus
from .rollouts.episodes import Policy, Rollout, RolloutRunner
from .rollouts.losses import mismatch, policy_loss, reads, with_reference, with_trainer_logprobs
from .rollouts.server.settings import policy_of
from .run.configs import adam_params
from .run.interrupts import restarted
from .run.names import SAMPLES
from .run.runs import Run
from .settings.rl import RLConfig

#: The metrics in the progress display.
SHOWN = ("reward", "response_length", "sampler_entropy", "grad_norm")


@restarted
def main(config: RLConfig) -> dict[str, float]:
    """Train and return the last value of every metric. After Ctrl-C, save and raise SystemExit(130)."""
    bonus = EntropyBonus(config, policy_loss(config))  # raises for unknown ids and settings, before anything is loaded
    check_advantages(config.advantages)
    problems, held_out = load_problems(config, config.seed)
    run, training = begin(config)
    introduce(config, run, training, rows=len(problems), steps=config.steps)
    reference = training.create_reference_client() if reads(bonus.loss, "ref_logprobs") else None
    runner = RolloutRunner(training.get_tokenizer(), config.max_tokens, config.max_length, config.temperature)
    with (
        policy_of(config, training, run.path) as policy,
        RolloutCollector(config, runner, problems, policy) as collector,
        Loop(config, run, training, config.steps, keep=lambda: bonus.kept(collector.keep())) as loop,
    ):
        collector.restore(bonus.restored(loop.kept))
        if loop.start == 0:
            loop.log_evaluation(0, evaluate(0, runner, held_out, policy, run))
        for step in loop:
            rollouts = collector.get(step, is_last=step == config.steps)
            datums = datums_of(collector, rollouts.groups, config.advantages, allow_biased=config.allow_biased)
            if reads(bonus.loss, "rollout_logprobs"):
                datums = with_trainer_logprobs(datums, training)
            if reference is not None:
                datums = with_reference(datums, reference)
            batches, outputs, updates = minibatches(datums, config, step), [], []
            loss, applied = bonus.loss, {}
            for batch in batches:
                loss = bonus.loss
                outputs.append(training.forward_backward(batch, loss).result())
                applied = bonus.stepped(outputs[-1])
                updates.append(training.optim_step(adam_params(config, step, config.steps)).result())
            used = [datum for batch in batches for datum in batch]
            more = rollouts.metrics | mismatch(batches[0], outputs[0]) | applied
            loop.log(step, used, merge_outputs(outputs), mean_update(updates), more, shown=SHOWN)
            loop.record(step, loss, batches[-1], outputs[-1])  # the last minibatch, whose ratios have moved most
            record_rollouts(run, step, "training", rollouts, config.samples)
            if loop.is_evaluated(step):
                loop.log_evaluation(step, evaluate(step, runner, held_out, policy, run))
    return finish(run, training)


def check(config: RLConfig) -> None:
    """Raise for a loss or advantages that the recipe cannot use. Nothing is loaded."""
    EntropyBonus(config, policy_loss(config))
    check_advantages(config.advantages)


def check_advantages(name: str) -> None:
    """Raise ConfigError for an unknown name of advantages."""
    if name not in (known := (*ADVANTAGES, *TURN_ADVANTAGES)):
        raise ConfigError(f"no advantages are called {name!r}.{did_you_mean(name, known)} There are {', '.join(known)}")


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
