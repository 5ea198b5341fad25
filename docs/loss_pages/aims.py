"""What people want of a loss, by the form of their data: the first table of which-loss.md. make_loss_pages.py uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: {form of the data, as in data.py: [(aim, losses)]}, the usual aim first. Every loss stands in some row of its form.
AIMS: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
    "Answers to imitate": [
        ("imitate them", ["cross_entropy"]),
        ("keep what the model knows", ["dft", "eaft", "asft"]),
        ("learn from few hard tokens", ["focal", "poly1"]),
        ("probabilities that can be trusted", ["label_smoothing"]),
        ("avoid them", ["unlikelihood"]),
    ],
    "Pairs of answers, one better than the other": [
        ("prefer the better one, near a reference", ["dpo", "hinge", "exo_pair", "discopop"]),
        ("the same without a reference model", ["simpo", "cpo", "orpo", "alphapo"]),
        ("pairs that agree always, or are partly wrong", ["ipo", "robust"]),
        ("keep chosen answers likely", ["apo_zero", "nca_pair", "apo_down", "bco_pair"]),
        ("no bias to length", ["sigmoid_norm", "ld_dpo"]),
        ("pairs of other models, or of the policy's own samples", ["wpo", "sppo_hard"]),
        ("pairs with a margin, or only two sets", ["margin_dpo", "aot", "aot_unpaired"]),
    ],
    "Prompts, and a reward for what the model answers": [
        ("begin: rewards that can be checked, several samples a prompt", ["grpo", "dapo", "ppo"]),
        ("strictly on policy", ["reinforce", "gpg", "rloo", "importance_sampling"]),
        ("several updates per sample", ["ppo", "dual_clip", "cispo", "sapo", "gmpo"]),
        ("one reward per response, mixtures of experts", ["gspo", "gspo_token", "luspo"]),
        ("asynchronous or old samples", ["vespo", "dppo", "rollout_is", "dro"]),
        ("keep entropy", ["clip_cov", "kl_cov"]),
        ("no bias to length", ["dr_grpo", "bnpo"]),
    ],
}
