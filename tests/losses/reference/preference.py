"""Preference losses in NumPy, one pair (or response) at a time, from the papers' formulas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .complex_step import clip, logsumexp, maximum, sigmoid, stop
from .rows import Row

Array = np.ndarray
#: A pair's loss from (chosen, rejected, settings).
PairLoss = Callable[..., Any]


def log_ratio(row: Row) -> Any:
    """Σ w (p - f)."""
    return sum(w * (p - f) for w, p, f in zip(row.weights, row["logprobs"], row["ref_logprobs"], strict=True))


def mean_log_ratio(row: Row) -> Any:
    return log_ratio(row) / sum(row.weights)


def mean_logprob(row: Row) -> Any:
    return np.dot(row.weights, row["logprobs"]) / row.weights.sum()


def softplus(x: Any) -> Any:
    """log(1 + e^x) = -log σ(-x)."""
    return logsumexp(np.array([x, 0 * x]))


def pairwise(loss: PairLoss) -> Callable[..., Array]:
    """From a loss of two rows to one of all rows."""

    def over_pairs(rows: Sequence[Row], **settings: Any) -> Array:
        pairs = zip(rows[0::2], rows[1::2], strict=True)
        return np.array([complex(loss(chosen, rejected, **settings)) for chosen, rejected in pairs])

    return over_pairs


def of_log_ratios(loss: PairLoss) -> Callable[..., Array]:
    """The same for a loss of the two sums c and j alone."""
    return pairwise(lambda chosen, rejected, **settings: loss(log_ratio(chosen), log_ratio(rejected), **settings))


def score(x: Any, divergence: str, alpha: float) -> Any:
    """f'(e^x) up to a constant, exponents at most 80."""
    if divergence == "reverse_kl" or (divergence == "alpha" and alpha == 1):
        return x
    if divergence == "forward_kl":
        return -np.exp(clip(-x, -np.inf, 80))
    if divergence == "js":
        return np.log(2) + x - softplus(x)
    return np.exp(clip((alpha - 1) * x, -np.inf, 80)) / (alpha - 1)


def dpo(c: Any, j: Any, *, beta: float, label_smoothing: float, divergence: str, alpha: float) -> Any:
    margin = beta * (score(c, divergence, alpha) - score(j, divergence, alpha))
    return (1 - label_smoothing) * softplus(-margin) + label_smoothing * softplus(margin)


def margin_dpo(chosen: Row, rejected: Row, *, beta: float) -> Any:
    return softplus(chosen["margin"] - beta * (log_ratio(chosen) - log_ratio(rejected)))


def hinge(c: Any, j: Any, *, beta: float) -> Any:
    slack = 1 - beta * (c - j)
    return slack if np.real(slack) > 0 else 0


def robust(c: Any, j: Any, *, beta: float, label_smoothing: float) -> Any:
    right, wrong = softplus(-beta * (c - j)), softplus(beta * (c - j))
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def exo_pair(c: Any, j: Any, *, beta: float, label_smoothing: float) -> Any:
    # The KL of two Bernoulli distributions, from their log-probabilities.
    log_policy = [-softplus(-beta * (c - j)), -softplus(beta * (c - j))]
    log_label = [np.log(1 - label_smoothing), np.log(label_smoothing)]
    return sum(np.exp(q) * (q - p) for q, p in zip(log_policy, log_label, strict=True))


def discopop(c: Any, j: Any, *, beta: float, tau: float) -> Any:
    z = beta * (c - j)
    mix = sigmoid(z / tau)
    return (1 - mix) * softplus(-z) + mix * np.exp(clip(-z, -np.inf, 600))


def ipo(chosen: Row, rejected: Row, *, beta: float, length_normalized: bool) -> Any:
    gather = mean_log_ratio if length_normalized else log_ratio
    return (gather(chosen) - gather(rejected) - 1 / (2 * beta)) ** 2


def sigmoid_norm(chosen: Row, rejected: Row, *, beta: float) -> Any:
    return softplus(-beta * (mean_log_ratio(chosen) - mean_log_ratio(rejected)))


def ld_dpo(chosen: Row, rejected: Row, *, beta: float, alpha: float) -> Any:
    shared = min(len(chosen), len(rejected))
    sums = []
    for row in (chosen, rejected):
        terms = row.weights * (row["logprobs"] - row["ref_logprobs"])
        sums.append(sum(terms[:shared]) + alpha * sum(terms[shared:]))
    return softplus(-beta * (sums[0] - sums[1]))


def bco_pair(c: Any, j: Any, *, beta: float) -> Any:
    return softplus(-beta * c) + softplus(beta * j)


def nca_pair(c: Any, j: Any, *, beta: float) -> Any:
    return softplus(-beta * c) + (softplus(beta * c) + softplus(beta * j)) / 2


def sppo_hard(c: Any, j: Any, *, beta: float) -> Any:
    return (c - 1 / (2 * beta)) ** 2 + (j + 1 / (2 * beta)) ** 2


def apo_zero(c: Any, j: Any, *, beta: float) -> Any:
    return 1 - sigmoid(beta * c) + sigmoid(beta * j)


def apo_down(c: Any, j: Any, *, beta: float) -> Any:
    return sigmoid(beta * c) + 1 - sigmoid(beta * (c - j))


def sorted_up(values: Sequence[Any]) -> list[Any]:
    """Ascending by real part; equals are replaced by their mean, which shares the derivative."""
    reals = np.real(np.array(values, dtype=complex))
    return [np.mean([v for v, r in zip(values, reals, strict=True) if r == place]) for place in np.sort(reals)]


def transported(first: Sequence[Any], second: Sequence[Any], beta: float, label_smoothing: float) -> Array:
    losses = []
    for a, b in zip(sorted_up(first), sorted_up(second), strict=True):
        losses.append((1 - label_smoothing) * softplus(beta * (b - a)) + label_smoothing * softplus(beta * (a - b)))
    return np.array(losses, dtype=complex)


def aot(rows: Sequence[Row], *, beta: float, label_smoothing: float) -> Array:
    def leads(key: str) -> list[Any]:
        sums = [np.dot(row.weights, row[key]) for row in rows]
        return [c - j for c, j in zip(sums[0::2], sums[1::2], strict=True)]

    return transported(leads("logprobs"), leads("ref_logprobs"), beta, label_smoothing)


def aot_unpaired(rows: Sequence[Row], *, beta: float, label_smoothing: float) -> Array:
    sums = [log_ratio(row) for row in rows]
    return transported(sums[0::2], sums[1::2], beta, label_smoothing)


def simpo(chosen: Row, rejected: Row, *, beta: float, gamma: float) -> Any:
    return softplus(gamma - beta * (mean_logprob(chosen) - mean_logprob(rejected)))


def alphapo(chosen: Row, rejected: Row, *, beta: float, gamma: float, alpha: float) -> Any:
    def reward(row: Row) -> Any:
        a = mean_logprob(row)
        return a if alpha == 0 else (1 - np.exp(clip(-alpha * a, -np.inf, 80))) / alpha

    return softplus(gamma - beta * (reward(chosen) - reward(rejected)))


def cpo(chosen: Row, rejected: Row, *, beta: float, label_smoothing: float, nll_coefficient: float) -> Any:
    margin = beta * (np.dot(chosen.weights, chosen["logprobs"]) - np.dot(rejected.weights, rejected["logprobs"]))
    preference = (1 - label_smoothing) * softplus(-margin) + label_smoothing * softplus(margin)
    return preference - nll_coefficient * mean_logprob(chosen)


def tpo(chosen: Row, rejected: Row, *, beta: float, contrast: str, gamma: float, label_smoothing: float) -> Any:
    if contrast in ("ipo", "tpo_l"):
        margin = mean_logprob(chosen) - mean_logprob(rejected)
    else:
        margin = np.dot(chosen.weights, chosen["logprobs"]) - np.dot(rejected.weights, rejected["logprobs"])
    if contrast == "ipo":
        return (margin - 1 / (2 * beta)) ** 2
    if contrast == "hinge":
        return maximum(1 - beta * margin, 0)
    x = beta * margin - gamma if contrast == "tpo_l" else beta * margin
    return (1 - label_smoothing) * softplus(-x) + label_smoothing * softplus(x)


def wpo(chosen: Row, rejected: Row, *, beta: float, label_smoothing: float, alignment: str, top_k: int) -> Any:
    weight: Any = 1
    for row in (chosen, rejected):
        aligned = []
        for logprob, top in zip(row["logprobs"], row["topk_logprobs"], strict=True):
            base = {"sampled": np.log(np.sum(np.exp(top[:top_k]) ** 2)), "greedy": top[0], "none": 0}[alignment]
            aligned.append(logprob - base)
        weight = weight * np.exp(np.dot(row.weights, aligned) / row.weights.sum())
    margin = beta * (log_ratio(chosen) - log_ratio(rejected))
    return stop(weight) * ((1 - label_smoothing) * softplus(-margin) + label_smoothing * softplus(margin))


def chosen_nll(chosen: Row, rejected: Row) -> Any:
    return -mean_logprob(chosen)


def orpo(chosen: Row, rejected: Row, *, odds_coefficient: float) -> Any:
    def log_odds(row: Row) -> Any:
        held = clip(mean_logprob(row), -np.inf, -1e-6)
        return held - np.log(-np.expm1(held))

    return -mean_logprob(chosen) + odds_coefficient * softplus(log_odds(rejected) - log_odds(chosen))


def labelled(rows: Sequence[Row], zero: Any, beta: float, desirable: float, undesirable: float) -> Array:
    losses = []
    for row in rows:
        push = sigmoid(beta * (log_ratio(row) - zero))
        losses.append(desirable * (1 - push) if row["label"] else undesirable * push)
    return np.array(losses, dtype=complex)


def kto(rows: Sequence[Row], *, beta: float, desirable_weight: float, undesirable_weight: float) -> Array:
    aside = [row for row in rows if row.get("is_mismatched")]
    zero = maximum(stop(np.mean([log_ratio(row) for row in aside])), 0) if aside else 0
    kept = [row for row in rows if not row.get("is_mismatched")]
    return labelled(kept, zero, beta, desirable_weight, undesirable_weight)


def apo_zero_unpaired(rows: Sequence[Row], *, beta: float, desirable_weight: float, undesirable_weight: float) -> Array:
    return labelled(rows, 0, beta, desirable_weight, undesirable_weight)


def bco(rows: Sequence[Row], *, beta: float) -> Array:
    rewards = [beta * log_ratio(row) for row in rows]
    losses = []
    for row, reward in zip(rows, rewards, strict=True):
        shift = stop(np.mean(rewards)) if row.get("shift") is None else row["shift"]
        losses.append(softplus(shift - reward if row["label"] else reward - shift))
    return np.array(losses, dtype=complex)


def reward_bt(chosen: Row, rejected: Row, *, center_coefficient: float) -> Any:
    best, other = chosen["values"][-1], rejected["values"][-1]
    return softplus((chosen.get("margin") or 0) - (best - other)) + center_coefficient * (best + other) ** 2


REFERENCES = {
    "dpo": of_log_ratios(dpo),
    "margin_dpo": pairwise(margin_dpo),
    "hinge": of_log_ratios(hinge),
    "robust": of_log_ratios(robust),
    "exo_pair": of_log_ratios(exo_pair),
    "discopop": of_log_ratios(discopop),
    "ipo": pairwise(ipo),
    "sigmoid_norm": pairwise(sigmoid_norm),
    "ld_dpo": pairwise(ld_dpo),
    "bco_pair": of_log_ratios(bco_pair),
    "nca_pair": of_log_ratios(nca_pair),
    "sppo_hard": of_log_ratios(sppo_hard),
    "apo_zero": of_log_ratios(apo_zero),
    "apo_down": of_log_ratios(apo_down),
    "aot": aot,
    "aot_unpaired": aot_unpaired,
    "simpo": pairwise(simpo),
    "alphapo": pairwise(alphapo),
    "cpo": pairwise(cpo),
    "tpo": pairwise(tpo),
    "wpo": pairwise(wpo),
    "chosen_nll": pairwise(chosen_nll),
    "orpo": pairwise(orpo),
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
    "bco": bco,
    "reward_bt": pairwise(reward_bt),
}
#: Settings, beside the defaults, under which each loss is compared.
VARIANTS: dict[str, list[dict]] = {
    "dpo": [
        {"beta": 0.5, "label_smoothing": 0.25},
        {"divergence": "forward_kl", "beta": 0.01},
        {"divergence": "js", "beta": 1.0, "label_smoothing": 0.1},
        {"divergence": "alpha"},
        {"divergence": "alpha", "alpha": 1.25},
        {"divergence": "alpha", "alpha": 1.0},
    ],
    "margin_dpo": [{"beta": 1.0}],
    "hinge": [{"beta": 1.0}],
    "robust": [{"beta": 0.5, "label_smoothing": 0.25}],
    "exo_pair": [{"beta": 0.5, "label_smoothing": 0.25}],
    "discopop": [{"beta": 0.25, "tau": 0.5}],
    "ipo": [{"beta": 0.5}, {"length_normalized": False}],
    "sigmoid_norm": [{"beta": 1.0}],
    "ld_dpo": [{"beta": 0.5, "alpha": 0.0}, {"alpha": 1.0}],
    "bco_pair": [{"beta": 1.0}],
    "nca_pair": [{"beta": 1.0}],
    "sppo_hard": [{"beta": 1.0}],
    "apo_zero": [{"beta": 1.0}],
    "apo_down": [{"beta": 1.0}],
    "aot": [{"beta": 0.5, "label_smoothing": 0.25}],
    "aot_unpaired": [{"beta": 0.5, "label_smoothing": 0.25}],
    "simpo": [{"beta": 10.0, "gamma": 0.0}],
    "alphapo": [{"beta": 1.0, "gamma": 0.0, "alpha": -0.5}, {"alpha": 0.0}],
    "cpo": [{"beta": 0.5, "label_smoothing": 0.25, "nll_coefficient": 0.0}],
    "tpo": [
        {"beta": 0.5, "label_smoothing": 0.25},
        {"beta": 0.5, "contrast": "hinge"},
        {"beta": 0.5, "contrast": "ipo"},
        {"beta": 2.0, "contrast": "tpo_l", "gamma": 1.0, "label_smoothing": 0.1},
    ],
    "wpo": [{"beta": 0.5, "label_smoothing": 0.25, "top_k": 3}, {"alignment": "greedy"}, {"alignment": "none"}],
    "orpo": [{"odds_coefficient": 0.1}],
    "kto": [{"beta": 1.0, "desirable_weight": 2.0, "undesirable_weight": 0.5}],
    "apo_zero_unpaired": [{"beta": 1.0, "desirable_weight": 2.0, "undesirable_weight": 0.5}],
    "bco": [{"beta": 1.0}],
    "reward_bt": [{"center_coefficient": 0.5}],
}
