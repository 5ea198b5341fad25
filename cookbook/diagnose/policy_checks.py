"""Diagnostics of reinforcement learning: the sampled answers, and the distance from the reference."""

from __future__ import annotations

import numpy as np

from .advice import (
    advice,
    fewer_updates,
    lower_learning_rate,
    more_kl,
    now,
    number,
    number_of_loss,
    other_losses,
    wider_clip,
)
from .diagnosis import FEWEST, Diagnosis
from .history import History

#: KL between policy and reference: nats per answer, or, if no answer length was recorded, per token (10 over 100 tokens).
MOST_KL, MOST_KL_PER_TOKEN = 10.0, 0.1
#: Share of tokens beyond the clip. At 0.3 nearly a third of the batch has no gradient.
MOST_CLIPPED = 0.3
#: Entropy at the end over entropy at the start.
LEAST_ENTROPY = 0.2
#: Nats per token between sampler and trainer.
MOST_MISMATCH = 0.01
#: Share of groups in which all answers have the same reward.
MOST_LEVEL_GROUPS = 0.8
#: Share of answers cut off at max_tokens.
MOST_TRUNCATED = 0.2
#: Answer length at the end over that at the start, or the inverse.
LENGTH_DRIFT = 2.0


def rising_kl(history: History) -> Diagnosis | None:
    """The policy is far from its reference, and the distance grows."""
    kl = history.find("ref_kl", at_least=FEWEST)
    if kl is None:
        return None
    lengths = history.find("response_length")
    late, limit, unit = (
        (kl.late, MOST_KL_PER_TOKEN, "nats per token")
        if lengths is None
        else (kl.late * lengths.late, MOST_KL, "nats per answer")
    )
    if late <= limit or kl.late <= kl.early:
        return None
    return Diagnosis(
        "warning",
        "The policy runs away from its reference",
        f"{kl.name} is {kl.late:.3g} nats per token at the end, {kl.early:.2g} at the start: {late:.3g} {unit}",
        advice(
            "read samples for tricks that earn reward without solving the task",
            more_kl(history),
            lower_learning_rate(history),
            "use an earlier checkpoint",
        ),
        f"The limit is {limit:g} {unit}: TRL's training FAQ recommends 0 to 10. The farther the policy moves, the less its "
        "reward can be trusted: Gao et al. 2022, arXiv:2210.10760.",
    )


def much_clipped(history: History) -> Diagnosis | None:
    """Many tokens are beyond the clip."""
    clipped = history.find("clip_fraction", at_least=FEWEST)
    if clipped is None or clipped.late <= MOST_CLIPPED:
        return None
    return Diagnosis(
        "warning",
        "Many tokens are clipped",
        f"{clipped.name} is {clipped.late:.0%} at the end",
        advice(
            lower_learning_rate(history),
            fewer_updates(history),
            "set off_policy_steps 0" if number(history, "off_policy_steps") else None,
            wider_clip(history),
            "check that sampling_logprobs come from the policy that sampled (see the mismatch)",
        ),
        "A clipped token has gradient 0 (Schulman et al. 2017, arXiv:1707.06347 eq. 7), so this share of the batch is "
        "wasted. The usual range is 0.01 to 0.2; no source gives a limit, 0.3 is our choice.",
    )


def never_clipped(history: History) -> Diagnosis | None:
    """The clip never binds, although the policy moves away from the rollouts between updates."""
    clipped = history.find("clip_fraction", at_least=FEWEST)
    updates = int(history.settings.get("minibatches", 1)) * int(history.settings.get("passes", 1))
    is_off_policy = updates > 1 or bool(history.settings.get("off_policy_steps"))
    if clipped is None or not is_off_policy or np.any(clipped.values != 0):
        return None
    return Diagnosis(
        "warning",
        "The clip never binds",
        f"{clipped.name} is exactly 0 at all {len(clipped)} steps, though each step's rollouts are used {max(updates, 1)} "
        "times or are older than the weights",
        advice(
            "check that sampling_logprobs come from the sampler and not from the trainer",
            _bounds(history),
            f"otherwise the learning rate{now(history, 'learning_rate')} is too low to change the policy",
        ),
        "The threshold is exactly 0 at every step. (With one update per step the ratio is 1, so the fraction must be 0 and is "
        "not reported.) A clip that never binds can be a silent bug: torchforge#571 compared logprobs with themselves.",
    )


def _bounds(history: History) -> str:
    """What to look at in the bounds of the clip."""
    low, high = number_of_loss(history, "clip_low"), number_of_loss(history, "clip_high")
    if low is None or high is None:
        return "check that the bounds are ratios, near 1, and not distances from 1"
    return f"see whether bounds of {low:g} and {high:g} are too wide for such small changes"


def entropy_collapse(history: History) -> Diagnosis | None:
    """All answers become alike."""
    entropy = history.find("entropy", "sampler_entropy", at_least=FEWEST)
    if entropy is None or history.find("reward") is None or entropy.early <= 0:
        return None
    if entropy.late >= LEAST_ENTROPY * entropy.early:
        return None
    return Diagnosis(
        "warning",
        "Entropy collapses",
        f"{entropy.name} fell from {entropy.early:.3g} to {entropy.late:.3g} nats per token",
        advice(
            wider_clip(history),
            "add entropy_bonus" if other_losses(history, "entropy_bonus") else None,
            more_kl(history),
            lower_learning_rate(history),
            "use harder problems. If the reward is at its maximum, training is done",
        ),
        "Below a fifth of the start: reward grows at the cost of entropy, and stops growing without it: Cui et al. 2025, "
        "arXiv:2505.22617 section 2. The fifth is our choice.",
    )


def sampler_mismatch(history: History) -> Diagnosis | None:
    """Sampler and trainer give different logprobs to the same tokens."""
    mismatch = history.find("mismatch_k3", "mismatch_k1")
    if mismatch is None:
        return None
    typical = float(np.median(np.abs(mismatch.values)))
    if typical <= MOST_MISMATCH:
        return None
    return Diagnosis(
        "warning",
        "Sampler and trainer are not the same policy",
        f"{mismatch.name} is {typical:.2g} nats per token at the median step",
        advice(
            "look for a shift by one token, another temperature or chat template, or stale weights in the sampler",
            "the run's rollout correction weighs the difference and does not remove it"
            if history.settings.get("rollout_correction")
            else "then use rollout_correction token_truncate",
            "`lossbook doctor parity` compares the two on fixed tokens",
        ),
        "More than 0.01: an off-by-one error gave 0.35 to 0.49, and 0.001 to 0.005 once fixed (Arctic-Platform#110). The gap "
        "makes training off-policy, which a clip does not notice: Yao et al. 2025, Your Efficient RL Framework Secretly Brings "
        "You Off-Policy RL Training.",
    )


def level_groups(history: History) -> Diagnosis | None:
    """In most groups all answers have the same reward."""
    level = history.find("zero_advantage_groups", at_least=FEWEST)
    if level is None or level.late <= MOST_LEVEL_GROUPS:
        return None
    return Diagnosis(
        "warning",
        "Most groups give no learning signal",
        f"in {level.late:.0%} of the last groups all answers have the same reward, so their advantages are 0",
        advice(
            "use problems that are sometimes solved: easier ones if the reward is near 0, harder ones if it is near its maximum",
            f"a larger group_size{now(history, 'group_size')}",
            f"replace more such groups: a higher dynamic_sampling{now(history, 'dynamic_sampling')}"
            if number(history, "dynamic_sampling")
            else "replace such groups: dynamic_sampling 2",
        ),
        "A group of equal rewards has gradient 0: Yu et al. 2025 (DAPO), arXiv:2503.14476 section 3.2. Above 80 % less than a "
        "fifth of the batch is used; the limit is our choice.",
    )


def no_reward(history: History) -> Diagnosis | None:
    """The reward is the same at every step."""
    reward = history.find("reward", at_least=FEWEST)
    if reward is None or np.ptp(reward.values) > 0:
        return None
    return Diagnosis(
        "problem",
        "The reward never changes",
        f"it is {reward.last:g} at all {len(reward)} steps",
        advice(
            None
            if history.settings.get("start_from")
            else "start from a policy that sometimes succeeds: train sft, then start_from",
            "use easier problems",
            "fix the reward: read samples.jsonl",
        ),
        "Equal rewards give no advantage, so nothing is learned; there is no threshold.",
    )


def truncated_answers(history: History) -> Diagnosis | None:
    """Many answers are cut off."""
    truncated = history.find("truncated_fraction", at_least=FEWEST)
    if truncated is None or truncated.late <= MOST_TRUNCATED:
        return None
    return Diagnosis(
        "warning",
        "Answers are cut off",
        f"{truncated.late:.0%} of the last answers reached max_tokens",
        advice(
            f"raise max_tokens{now(history, 'max_tokens')}",
            f"use overlong {' or '.join(one for one in ('soft', 'mask') if one != history.settings.get('overlong'))}",
            "check that the end-of-turn token is learned and stops sampling",
        ),
        "A truncated answer is usually scored as wrong, whatever its content, which adds noise: Yu et al. 2025 (DAPO), "
        "arXiv:2503.14476 section 3.4. 20 % is our choice.",
    )


def length_drift(history: History) -> Diagnosis | None:
    """Answers became much longer or shorter."""
    length = history.find("response_length", at_least=FEWEST)
    if length is None or min(length.early, length.late) <= 0:
        return None
    factor = max(length.late / length.early, length.early / length.late)
    if factor <= LENGTH_DRIFT:
        return None
    return Diagnosis(
        "note",
        "Answers change in length",
        f"from {length.early:.3g} to {length.late:.3g} tokens",
        advice(
            "read samples: is the change useful? If not, "
            + _other_reductions(history)
            + "a reward that depends on length"
        ),
        "A mean over each answer's own tokens favours long wrong answers: Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783 "
        "section 3.1. A factor of 2 is our choice.",
    )


def _other_reductions(history: History) -> str:
    """Reductions that weigh all tokens alike; "" where the run has such a one."""
    alike = {"seq-mean-token-sum-norm": "dr_grpo", "token-mean": "dapo"}
    if history.loss_settings().get("reduction") in alike:
        return "use "
    named = " or ".join(f"{reduction} ({loss})" for reduction, loss in alike.items())
    return f"use reduction {named}, or "
