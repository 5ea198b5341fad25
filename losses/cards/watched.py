"""What people watch while a loss trains: one sentence for each metric of lossbook's own losses.

A name means the same in every loss that has it. Reports judge some of them against limits (docs/reports.md); the limits here are
the same.
"""

from __future__ import annotations

from collections.abc import Mapping

WATCHED: Mapping[str, str] = {
    # of tokens
    "nll": "nats per token of the trained tokens; falls while the model learns to write them",
    "probability": "mean probability of the targets; near 1, nothing is left to learn",
    "focal_factor": "mean factor on the loss; near 0, nearly every token counts as easy",
    "uniform_nll": "nats per token against all tokens alike; rises as the model becomes sure",
    "certain": "tokens that the model is certain of and that therefore have no gradient; more than a few mean that it is too late",
    "logsumexp": "mean size of the logits; a steady rise comes before instability",
    "logsumexp_max": "the largest of them; a jump comes before a jump of the loss",
    "entropy": "nats per token; a fall below a fifth of the start means that the policy has stopped trying other answers",
    "entropy_estimate": "the entropy as the samples show it, in nats per token; read it as `entropy`, with noise",
    # of a policy's ratio
    "clip_fraction": "share beyond the clip, without a gradient; above 0.3, take fewer updates per sample or a lower learning rate",
    "dual_clip_fraction": "share beyond the second bound; above a few per cent, samples are too old",
    "mask_fraction": "share of masked tokens; above 0.3, samples are too old or the bounds too narrow",
    "mask_fraction_high": "of them, tokens that became too likely",
    "mask_fraction_low": "of them, tokens that became too unlikely",
    "covariance_fraction": "share of tokens that are treated for their covariance; stays near the setting",
    "ratio_mean": "1 on policy; a drift away from 1 means that samples and policy no longer agree",
    "ratio_max": "the largest ratio of a token; above 10 or so, one token can decide a step",
    "ratio_capped": "tokens whose log-ratio hit the cap; anything but 0 means wrong logprobs or very old samples",
    "sequence_ratio_min": "the smallest ratio of a response; near 0, such responses hardly count",
    "sequence_ratio_max": "the largest ratio of a response; a jump means that one response decides the step",
    "sampling_kl_k1": "nats per token from sampler to policy; noisy, and may be negative",
    "sampling_kl_k3": "the same, never negative; above 0.01 before the first update, sampler and trainer compute different policies",
    "gate_mean": "mean of the gate; near 0, most tokens have faded out",
    "response_weight": "mean weight of a response; near 0, samples are too old to learn from",
    "squared_log_ratio": "nats² per token; its share of the loss should stay small, or samples are too old",
    "second_moment": "mean squared log-ratio of all tokens, in nats²; far above the threshold, many tokens have to be dropped",
    "positive_weight": "mean weight of rewarded tokens",
    "negative_weight": "mean weight of punished tokens; near 0, wrong answers teach nothing more",
    "right_score": "nats per token by which right responses became more likely; must rise above `wrong_score`",
    "wrong_score": "the same of wrong responses; falls, or rises less",
    "one_sided": "share of groups that are all right or all wrong and teach nothing; near 1, prompts are too easy or too hard",
    "future_kl": "mean of what later tokens of the response add up to, in nats; near 0 on policy, a steady sign means drift",
    "future_weight": "mean factor on the loss; at a bound for long, the bounds decide rather than the future",
    "quadratic_penalty": "the penalty's share of the loss; when it outweighs the reward's, lower its coefficient",
    "ref_kl": "nats per token from the reference; above 10 nats per answer the policy has left it",
    "sampler_kl": "nats per token from the weights that sampled; rises with each step on the same samples",
    # of a teacher
    "teacher_kl": "nats per token from student to teacher on the student's samples; must fall",
    "teacher_nll": "nats per token that the teacher gives the samples; must fall towards the teacher's entropy",
    "dropped_fraction": "share of tokens left out; above 0.3, samples are too old",
    "teacher_mass": "the teacher's probability of all candidates; below 0.9, take more candidates",
    "teacher_mass_min": "the smallest of them: the position that the candidates describe worst",
    "student_mass": "the student's probability of the same candidates; must rise towards `teacher_mass`",
    "teacher_entropy": "nats per token of the teacher over its candidates: what `teacher_cross_entropy` cannot fall below",
    "teacher_cross_entropy": "nats per token; the distance to `teacher_entropy` is what is left to learn",
    # of pairs and labelled answers
    "accuracy": "share of pairs told apart; 0.5 by chance, and 1 within a few steps means that the pairs are too easy",
    "margin": "mean reward of chosen less rejected; must rise, and without `chosen_reward` falling as fast",
    "chosen_reward": "mean reward of chosen answers; a fall by more than a tenth of the margin's rise means that they become unlikely too",
    "rejected_reward": "mean reward of rejected answers; falls",
    "chosen_nll": "nats per token of chosen answers; a rise means that they become less likely",
    "rejected_nll": "nats per token of rejected answers; rises",
    "score_capped": "responses at the cap, without a gradient; anything but 0 means wrong reference logprobs",
    "shortfall": "share of pairs that have not reached their margin; falls",
    "satisfied": "share of pairs without a gradient; near 1, nothing is left to learn",
    "desirable_reward": "mean reward of good answers; rises",
    "undesirable_reward": "mean reward of bad answers; falls",
    "desirable": "answers with a good label; both kinds belong in every batch",
    "kl": "the estimate of the KL that rewards are compared with, in nats; 0 for long means that answers of other rows are missing",
    "score_min": "the lowest score; with `score_max`, whether scores run away",
    "score_max": "the highest score",
    # of embeddings
    "in_batch_recall_at_1": "share of queries whose partner is the nearest; 1 / batch by chance and 0 for collapsed embeddings",
    "positive_similarity": "mean cosine of partners; rises, or falls less than `negative_similarity`",
    "negative_similarity": "mean cosine of negatives; equal to `positive_similarity` when embeddings collapse",
    "masked_duplicates": "negatives left out because they are the query's own document; many mean a repetitive batch",
    "query_to_document": "the loss of searching documents, in nats; ln(candidates) when nothing is learned",
    "document_to_query": "the loss of searching queries, in nats; the same",
    "order_accuracy": "share of pairs of pairs in the right order; 0.5 by chance",
    "similarity": "mean cosine of all pairs; near 1 for any label, embeddings collapse",
    "labels_disagree": "pairs whose two datums have different labels; anything but 0 is a fault of the data",
    "positive_distance": "mean distance of like texts; falls",
    "negative_distance": "mean distance of unlike texts; rises, or the margin is out of reach",
    "active": "share with a gradient; near 0, the negatives are too easy",
    "order_agreement": "share of triplets that student and teacher order alike; rises to 1",
    "teacher_margin": "the teacher's mean margin, that `margin` should reach",
    # of values
    "squared_error": "mean squared error of the values; should fall below the variance of the returns",
    "linear_fraction": "share of errors beyond delta; above a half, delta is too small for these returns",
    # of rankings
    "ndcg": "how good the order of a list is, 1 for the best; of equal scores the worse candidate counts first",
    "top_1": "share of lists whose first candidate is as relevant as any; at 1, take harder negatives",
    "score_deviation": "how far the scores of a list lie apart; near 0 for long, nothing is learned",
    "without_positive": "lists without a relevant candidate, which teach nothing; should be 0",
    "without_pairs": "lists without a positive or without a negative, which teach nothing; should be 0",
    "pairs": "mean number of compared pairs of a list; 0 means that labels do not differ",
    "rank_error": "mean distance of a smooth rank from the right one; falls towards 0",
    "right_side": "share of candidates on the right side of score 0; 1 within a few steps means that the negatives are too easy",
    "positive_score": "mean score of relevant candidates; rises away from `negative_score`",
    "negative_score": "mean score of irrelevant candidates; falls away from `positive_score`",
    "error": "mean of score less wanted score; away from 0, all scores are too high or too low",
    "absolute_error": "mean distance of the scores from the wanted ones; falls",
}


def watched(metric: str) -> str:
    """What people watch in a metric, "" for one of somebody else's loss. Of a part of a mixture too ("grpo/clip_fraction")."""
    return WATCHED.get(metric.rpartition("/")[2], "")
