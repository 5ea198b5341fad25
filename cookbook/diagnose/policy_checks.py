"""Diagnostics of reinforcement learning: what the policy samples, and how far it has moved."""

from __future__ import annotations

import numpy as np

from .findings import FEWEST, Finding
from .history import History

#: Nats an answer between policy and reference; per token where no answer's length is recorded: 10 over 100 tokens.
MOST_KL, MOST_KL_PER_TOKEN = 10.0, 0.1
#: Share of tokens beyond the clip. At 0.3 nearly a third of the batch teaches nothing.
MOST_CLIPPED = 0.3
#: Entropy at the end over entropy at the start.
LEAST_ENTROPY = 0.2
#: Nats a token between sampler and trainer.
MOST_MISMATCH = 0.01
#: Share of groups whose answers all earned the same.
MOST_LEVEL_GROUPS = 0.8
#: Share of answers cut off at max_tokens.
MOST_TRUNCATED = 0.2
#: Length of an answer at the end over that at the start, or the other way round.
LENGTH_DRIFT = 2.0


def rising_kl(history: History) -> Finding | None:
    """The policy is far from its reference, and going farther."""
    kl = history.find("ref_kl", at_least=FEWEST)
    if kl is None:
        return None
    lengths = history.find("response_length")
    late, limit, unit = (
        (kl.late, MOST_KL_PER_TOKEN, "nats a token")
        if lengths is None
        else (kl.late * lengths.late, MOST_KL, "nats an answer")
    )
    if late <= limit or kl.late <= kl.early:
        return None
    return Finding(
        "warning",
        "The policy runs away from its reference",
        f"{kl.name} is {kl.late:.3g} nats a token at the end, {kl.early:.2g} at the start: {late:.3g} {unit}",
        "Read samples for tricks that please the reward and nobody else; raise kl_coefficient; lower the learning rate; "
        "take an earlier checkpoint.",
        f"More than {limit:g} {unit}: TRL's training FAQ wants 0 to 10. The farther, the less a reward is to be trusted: "
        "Gao et al. 2022, arXiv:2210.10760.",
    )


def much_clipped(history: History) -> Finding | None:
    """Many tokens are beyond the clip."""
    clipped = history.find("clip_fraction", at_least=FEWEST)
    if clipped is None or clipped.late <= MOST_CLIPPED:
        return None
    return Finding(
        "warning",
        "Many tokens are clipped",
        f"{clipped.name} is {clipped.late:.0%} at the end",
        "Lower the learning rate; take fewer passes or minibatches over the same rollouts; widen the clip; check that "
        "sampling_logprobs are those of the policy that sampled (see the mismatch).",
        "A clipped token has gradient 0 (Schulman et al. 2017, arXiv:1707.06347 eq. 7), so this share of the batch is "
        "thrown away. The usual range is 0.01 to 0.2; no source draws a line, 0.3 is our choice.",
    )


def never_clipped(history: History) -> Finding | None:
    """A clip that never binds, although the policy moves away from the rollouts between updates."""
    clipped = history.find("clip_fraction", at_least=FEWEST)
    updates = int(history.settings.get("minibatches", 1)) * int(history.settings.get("passes", 1))
    is_off_policy = updates > 1 or bool(history.settings.get("off_policy_steps"))
    if clipped is None or not is_off_policy or np.any(clipped.values != 0):
        return None
    return Finding(
        "warning",
        "The clip never binds",
        f"{clipped.name} is exactly 0 at all {len(clipped)} steps, though each step's rollouts are used {max(updates, 1)} "
        "times or are older than the weights",
        "Check that sampling_logprobs come from the sampler and are not the trainer's own, and that the bounds are ratios "
        "(0.8 and 1.2), not distances from 1. Else the learning rate is too low to move anything.",
        "Exactly 0 for ever. With one update a step it must be 0, for the ratio is 1 then, and nothing is said. A clip "
        "that never binds is a known silent bug: torchforge#571 compared logprobs with themselves.",
    )


def entropy_collapse(history: History) -> Finding | None:
    """All answers become alike."""
    entropy = history.find("entropy", "sampler_entropy", at_least=FEWEST)
    if entropy is None or history.find("reward") is None or entropy.early <= 0:
        return None
    if entropy.late >= LEAST_ENTROPY * entropy.early:
        return None
    return Finding(
        "warning",
        "Entropy collapses",
        f"{entropy.name} fell from {entropy.early:.3g} to {entropy.late:.3g} nats a token",
        "Raise the upper clip bound (dapo: clip_high 1.28); add entropy_bonus; raise kl_coefficient; lower the learning "
        "rate; take harder problems. If the reward is at its ceiling, you are done.",
        "Below a fifth of its start: reward is bought with entropy, and without any it stops rising: Cui et al. 2025, "
        "arXiv:2505.22617 section 2. The fifth is our choice.",
    )


def sampler_mismatch(history: History) -> Finding | None:
    """Sampler and trainer disagree about the same tokens."""
    mismatch = history.find("mismatch_k3", "mismatch_k1")
    if mismatch is None:
        return None
    typical = float(np.median(np.abs(mismatch.values)))
    if typical <= MOST_MISMATCH:
        return None
    return Finding(
        "warning",
        "Sampler and trainer are not the same policy",
        f"{mismatch.name} is {typical:.2g} nats a token at the median step",
        "Look for a shift by one token, another temperature or chat template, or stale weights in the sampler; then "
        "rollout_correction token_truncate. `lossbook doctor parity` compares the two on fixed tokens.",
        "More than 0.01: an off-by-one gave 0.35 to 0.49, its mend 0.001 to 0.005 (Arctic-Platform#110). The gap is "
        "off-policy learning that no clip knows of: Yao et al. 2025, Your Efficient RL Framework Secretly Brings You "
        "Off-Policy RL Training.",
    )


def level_groups(history: History) -> Finding | None:
    """Most groups teach nothing."""
    level = history.find("zero_advantage_groups", at_least=FEWEST)
    if level is None or level.late <= MOST_LEVEL_GROUPS:
        return None
    return Finding(
        "warning",
        "Most groups teach nothing",
        f"in {level.late:.0%} of the last groups all answers earned the same, so their advantages are 0",
        "Take problems that are sometimes solved: easier ones if the reward is near 0, harder ones if near its ceiling; a "
        "larger group_size; dynamic_sampling 2 to replace such groups.",
        "A group of equal rewards has gradient 0: Yu et al. 2025 (DAPO), arXiv:2503.14476 section 3.2. From 80 % on the "
        "batch is a fifth of what it cost; that line is our choice.",
    )


def no_reward(history: History) -> Finding | None:
    """Every step earned the same."""
    reward = history.find("reward", at_least=FEWEST)
    if reward is None or np.ptp(reward.values) > 0:
        return None
    return Finding(
        "problem",
        "The reward never changes",
        f"it is {reward.last:g} at all {len(reward)} steps",
        "Start from a policy that sometimes succeeds (train sft, then start_from), take easier problems, or mend the "
        "reward: read samples.jsonl.",
        "Equal rewards have no advantage, so nothing is learned; there is no threshold.",
    )


def truncated_answers(history: History) -> Finding | None:
    """Many answers never came to an end."""
    truncated = history.find("truncated_fraction", at_least=FEWEST)
    if truncated is None or truncated.late <= MOST_TRUNCATED:
        return None
    return Finding(
        "warning",
        "Answers are cut off",
        f"{truncated.late:.0%} of the last answers ran into max_tokens",
        "Raise max_tokens; overlong soft or mask; check that the end-of-turn token is trained and stops sampling.",
        "A cut-off answer is mostly rewarded as wrong, which is noise about its content: Yu et al. 2025 (DAPO), "
        "arXiv:2503.14476 section 3.4. 20 % is our choice.",
    )


def length_drift(history: History) -> Finding | None:
    """Answers became much longer or shorter."""
    length = history.find("response_length", at_least=FEWEST)
    if length is None or min(length.early, length.late) <= 0:
        return None
    factor = max(length.late / length.early, length.early / length.late)
    if factor <= LENGTH_DRIFT:
        return None
    return Finding(
        "note",
        "Answers change their length",
        f"from {length.early:.3g} to {length.late:.3g} tokens",
        "Read samples: is the length earned? If not, use reduction seq-mean-token-sum-norm (dr_grpo) or token-mean (dapo), "
        "or a reward that knows of length.",
        "A mean over each answer's own tokens favours long wrong answers: Liu et al. 2025 (Dr. GRPO), arXiv:2503.20783 "
        "section 3.1. A factor of 2 is our choice.",
    )
