"""What people want of a loss, by the form of their data: a table of which-loss.md. make_loss_pages.py uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: {form of the data, as in data.py: [(aim, losses)]}, the usual aim first. Every loss of these forms stands in some row.
AIMS: Mapping[str, Sequence[tuple[str, Sequence[str]]]] = {
    "Answers to imitate": [
        ("to imitate them", ["cross_entropy"]),
        ("to keep what the model knows", ["dft", "eaft"]),
        ("to learn from the few hard tokens", ["focal", "poly1"]),
        ("probabilities that can be trusted", ["label_smoothing"]),
        ("to avoid them", ["unlikelihood"]),
    ],
    "Pairs of answers, one better than the other": [
        ("the better one, near a reference", ["dpo", "hinge", "exo_pair", "discopop"]),
        ("the same without a reference model", ["simpo", "cpo", "orpo", "alphapo", "tpo"]),
        ("not to overfit pairs that agree always, or are partly wrong", ["ipo", "robust"]),
        ("chosen answers that stay likely", ["apo_zero", "nca_pair", "apo_down", "bco_pair"]),
        ("no bias to length", ["sigmoid_norm", "ld_dpo"]),
        ("pairs of other models, or of the policy's own samples", ["wpo", "sppo_hard"]),
        ("to use how much better, or two sets without pairs", ["margin_dpo", "aot", "aot_unpaired"]),
    ],
    "Single answers marked good or bad": [
        ("good ones likelier, bad ones less", ["kto", "apo_zero_unpaired"]),
        ("the same, as a classifier learns it", ["bco"]),
    ],
    "Prompts, and a reward for what the model answers": [
        ("to begin: several samples per prompt, rewards that can be checked", ["grpo", "dapo", "ppo"]),
        ("one step on fresh samples", ["reinforce", "gpg", "rloo", "importance_sampling"]),
        ("several steps on the same samples", ["ppo", "dual_clip", "cispo", "sapo", "gmpo"]),
        ("one reward per response, mixtures of experts", ["gspo", "gspo_token", "luspo"]),
        ("old or asynchronous samples", ["vespo", "dppo", "rollout_is", "m2po", "prime_ipo"]),
        ("offline samples", ["dro", "topr"]),
        ("rewards that are right or wrong", ["real"]),
        ("to tell the tokens of a long response apart", ["fipo"]),
        ("entropy that lasts", ["clip_cov", "kl_cov"]),
        ("no bias to length", ["dr_grpo", "bnpo"]),
    ],
    "A teacher's most likely tokens": [
        ("the teacher's variety", ["topk_forward_kl", "sdft"]),
        ("the teacher's best modes", ["topk_reverse_kl"]),
        ("something between", ["topk_jsd", "gkd"]),
    ],
    "A teacher beside the student": [
        ("the teacher's variety", ["full_forward_kl", "full_skewed_forward_kl"]),
        ("the teacher's best modes", ["full_reverse_kl", "full_skewed_reverse_kl"]),
        ("something between", ["full_gkd", "full_jsd", "full_adaptive_kl"]),
        ("the student's own samples, judged with a hint", ["student_topk_gkd"]),
        ("a draft model for speculative decoding", ["full_total_variation"]),
        ("a teacher with another tokenizer", ["gold", "uld"]),
    ],
    "A query and its candidates": [
        ("relevant ones first, one or a few per query", ["rank_softmax", "rank_bce", "rank_mnrl"]),
        ("graded labels in order", ["lambda_loss", "listnet", "ranknet", "list_mle", "plist_mle"]),
        ("a larger reranker's scores or order", ["rank_margin_mse", "rank_mse", "adr_mse"]),
    ],
    "Two texts that belong together": [
        ("search", ["multiple_negatives_ranking", "info_nce"]),
        ("search, where negatives may be right too", ["gist"]),
        ("two views of a text, or any size of batch", ["ntxent", "siglip"]),
        ("several vectors per text", ["maxsim"]),
        ("sparse vectors", ["flops"]),
        ("vectors that use the whole space", ["gor"]),
    ],
}
