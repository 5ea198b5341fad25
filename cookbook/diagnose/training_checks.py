"""Diagnostics of any training: broken numbers, gradients, and overfitting."""

from __future__ import annotations

import math

import numpy as np

from .advice import advice, clip_gradients, lower_learning_rate, now, number, other_losses
from .diagnosis import FEWEST, Diagnosis
from .history import History

#: These must be finite at every step. Other metrics may be the mean of an empty set, which is NaN.
MUST_BE_FINITE = ("loss", "nll", "grad_norm", "held_out_nll", "reward", "held_out_score")
#: A spike is this many times the median of the last SPIKE_WINDOW steps. Healthy norms vary by a factor of 2 to 3.
SPIKE_FACTOR, SPIKE_WINDOW = 10.0, 20
#: The share of steps with a clipped gradient that counts as always.
ALWAYS_CLIPPED, FEWEST_TO_CLIP = 0.95, 20
#: How far the held-out loss may rise above its best: the criterion GL with alpha = 5 (percent) of Prechelt 1998.
GENERALIZATION_LOSS = 0.05


def non_finite(history: History) -> Diagnosis | None:
    """NaN or infinity in a metric that must be finite."""
    broken = {
        key: [row["step"] for row in history.rows if key in row and not math.isfinite(row[key])]
        for name in MUST_BE_FINITE
        for key in history.named(name)
    }
    broken = {key: steps for key, steps in broken.items() if steps}
    if not broken:
        return None
    first = min(broken, key=lambda name: broken[name][0])
    return Diagnosis(
        "problem",
        "A number is not finite",
        f"{', '.join(broken)}: NaN or infinite, first {first} at step {broken[first][0]}",
        advice(
            "look at that step's data and its recorded logprobs",
            lower_learning_rate(history),
            clip_gradients(history),
            "restart from an earlier checkpoint",
        ),
        "A single NaN or infinity ruins all later weights, so there is no threshold.",
    )


def gradient_spikes(history: History) -> Diagnosis | None:
    """A gradient norm far above those before it."""
    norms = history.find("grad_norm", at_least=FEWEST)
    if norms is None:
        return None
    spikes: list[int] = []
    for i in range(FEWEST // 2, len(norms)):
        median = float(np.median(norms.values[max(i - SPIKE_WINDOW, 0) : i]))
        if median > 0 and norms.values[i] > SPIKE_FACTOR * median:
            spikes.append(i)
    if not spikes:
        return None
    worst = max(spikes, key=lambda i: norms.values[i])
    return Diagnosis(
        "warning",
        "The gradient spikes",
        f"at {len(spikes)} of {len(norms)} steps grad_norm is over {SPIKE_FACTOR:g} times the median before it, "
        f"at most {norms.values[worst]:.3g} at step {norms.steps[worst]}",
        advice(
            "look for unusual rows in those batches (very short, very long, repeated)",
            clip_gradients(history),
            _warm_up(history, int(norms.steps[worst])),
            f"{lower_learning_rate(history)} if the loss jumps as well",
        ),
        "Norms of single batches vary by a factor of 2 to 3; 10 is our choice. Spikes precede jumps of the loss: "
        "Chowdhery et al. 2022, arXiv:2204.02311 section 5.1.",
    )


def _warm_up(history: History, spike: int) -> str:
    """A warm-up, or a longer one where there is one."""
    steps, ratio = number(history, "warmup_steps"), number(history, "warmup_ratio")
    if steps or ratio:
        return f"use a longer warm-up than {f'{steps:g} steps' if steps else f'{ratio:.0%} of the steps'}"
    return f"use warmup_steps, such as {max(spike, 10)}"


def always_clipped(history: History) -> Diagnosis | None:
    """Nearly every gradient is clipped."""
    norms, clipped = history.find("grad_norm"), history.find("grad_norm_clipped")
    if norms is None or clipped is None or not len(norms) == len(clipped) >= FEWEST_TO_CLIP:
        return None
    is_clipped = clipped.values < norms.values * (1 - 1e-6)
    if is_clipped.mean() <= ALWAYS_CLIPPED:
        return None
    return Diagnosis(
        "note",
        "Every gradient is clipped",
        f"{is_clipped.mean():.0%} of steps; the norm is {norms.late:.3g} at the end, and {clipped.late:.3g} after clipping",
        advice(
            f"set grad_clip_norm{now(history, 'grad_clip_norm')} a little above the usual norm, so that only spikes are clipped",
            None
            if "mean" in str(history.loss_settings().get("reduction"))
            else "check that the loss is a mean (reduction), not a sum that grows with the batch",
        ),
        "Clipping is meant for rare large gradients (Pascanu et al. 2013, arXiv:1211.5063 section 3.2). If it acts on every "
        "step, all batches count the same, however much there is to learn from them. 95 % is our choice.",
    )


def worse_though_loss_falls(history: History) -> Diagnosis | None:
    """The training loss falls, but right answers become less likely, also in training: the loss has another optimum."""
    held_out, loss = history.find("held_out_nll", at_least=2), history.find("loss", at_least=FEWEST)
    nll = history.find("nll", at_least=FEWEST)
    if held_out is None or loss is None or held_out.values[0] <= 0 or loss.late >= loss.early:
        return None
    rise = held_out.last / held_out.values[0] - 1
    if rise <= GENERALIZATION_LOSS or (nll is not None and nll.late < nll.early):
        return None
    return Diagnosis(
        "problem",
        "The loss falls, but the model gets worse",
        f"loss went from {loss.early:.3g} to {loss.late:.3g}, held_out_nll from {held_out.values[0]:.3g} to {held_out.last:.3g}",
        advice(
            f"choose another loss for this data ({other}), or start with one"
            if (other := other_losses(history, "cross_entropy"))
            else "see whether training and held-out data are of one kind",
            "the card of the loss says where its gradient vanishes",
        ),
        "A loss near 0 does not prove that the model has learned: the gradient of dft, for example, nearly vanishes on tokens "
        "that the model finds unlikely (Wu et al. 2025, arXiv:2508.05629). The threshold, 5 % above the start, is criterion GL "
        "with alpha = 5 of Prechelt 1998.",
    )


def overfitting(history: History) -> Diagnosis | None:
    """The held-out loss rises above its best while the training loss still falls."""
    held_out, training = history.find("held_out_nll", at_least=3), history.find("nll", "loss", at_least=FEWEST)
    if held_out is None or training is None:
        return None
    best = int(np.argmin(held_out.values))
    if best == 0 and training.name == "loss":
        return None  # never better than at the start: `worse_though_loss_falls` reports it
    rise = held_out.last / held_out.values[best] - 1 if held_out.values[best] > 0 else 0.0
    before = training.values[training.steps <= held_out.steps[best]]
    still_falls = not len(before) or training.late < before[-FEWEST:].mean()
    if rise <= GENERALIZATION_LOSS or best == len(held_out) - 1 or not still_falls:
        return None
    return Diagnosis(
        "warning",
        "The model overfits its training data",
        f"held_out_nll was {held_out.values[best]:.3g} at step {held_out.steps[best]} and is {held_out.last:.3g} at the end, "
        f"{rise:.0%} more, while the training loss fell to {training.late:.3g}",
        advice(
            f"use the checkpoint nearest to step {held_out.steps[best]}"
            + ("" if number(history, "save_every") else "; the next run keeps some with save_every"),
            None if number(history, "early_stopping_patience") else "end there: early_stopping_patience",
            f"train for fewer epochs{now(history, 'epochs')}"
            if number(history, "epochs") != 1
            else "train for fewer steps",
            "use more data",
            lower_learning_rate(history),
            None if history.settings.get("all_weights") else f"lower the rank{now(history, 'rank')}",
        ),
        "More than 5 % above the best: Prechelt 1998, Early Stopping - But When?, criterion GL with alpha = 5.",
    )
