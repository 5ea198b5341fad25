"""Evaluation on held-out preferences, in the same way for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...datums.errors import EmptyLossError
from ...datums.types import Datum
from .examples import PreferenceExample, flat
from .references import References

if TYPE_CHECKING:
    from ...trainer import TrainingClient
    from ...trainer.responses import TopLogprobs

#: The KL is over this many of the likeliest tokens; all others together count as one more.
CANDIDATES = 32
#: Scores that differ by less, in nats, count as equal: it is the rounding between two forwards of the same weights.
ROUNDING = 1e-4


@dataclass(frozen=True)
class HeldOutPreferences:
    """Held-out answers, and what the weights at the start say about them.

    good, bad   indices of datums: of pairs, good[i] is the chosen answer and bad[i] the rejected one to the same prompt;
                of labelled answers, every good one is compared with every bad one

    measure gives
        held_out_accuracy          share of pairs whose chosen answer has the higher mean logprob; ties count half
        held_out_margin            mean difference, nats per token
        held_out_reward_accuracy   the same for the implicit reward, Σ (logprobs - those at the start): 1/2 at the start
        held_out_reward_margin     mean difference, nats per answer
        held_out_chosen_change, held_out_rejected_change    mean implicit reward of either side, nats per answer
        held_out_kl                KL(start || now) at the chosen answers' positions, nats per token: over the start's
                                   likeliest tokens and all others as one, so a lower bound; 0 at the start
    """

    datums: list[Datum]
    good: np.ndarray
    bad: np.ndarray
    start: list[np.ndarray]
    likeliest: list[TopLogprobs]

    @classmethod
    def begin(cls, examples: Sequence[PreferenceExample], references: References) -> HeldOutPreferences | None:
        """Evaluate the weights at the start; None without held-out data. Raises EmptyLossError for answers of one label."""
        if not examples:
            return None
        datums = flat(examples)
        good, bad = sides(examples)
        if not len(good):
            raise EmptyLossError(
                f"all {len(datums)} held-out answers have the same label, so none can be compared: hold out good and bad ones"
            )
        chosen = [datums[i] for i in np.unique(good)]
        return cls(datums, good, bad, references.logprobs(datums), references.likeliest(chosen, CANDIDATES))

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Evaluate the current weights; one forward."""
        likeliest = dict(zip(np.unique(self.good).tolist(), self.likeliest, strict=True))
        datums = [_with_candidates(datum, likeliest.get(i)) for i, datum in enumerate(self.datums)]
        outputs = training.forward(datums, "cross_entropy").result().loss_fn_outputs
        logprobs = [
            output["logprobs"].to_numpy().reshape(len(start), -1)
            for output, start in zip(outputs, self.start, strict=True)
        ]
        weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in self.datums]
        means = np.array([(w * now[:, 0]).sum() / w.sum() for w, now in zip(weights, logprobs, strict=True)])
        gains = np.array([(w * (now[:, 0] - s)).sum() for w, now, s in zip(weights, logprobs, self.start, strict=True)])
        accuracy, margin = self._compared(means)
        reward_accuracy, reward_margin = self._compared(gains)
        kls = [coarse_kl(top.logprobs, logprobs[i][:, 1:])[weights[i] != 0] for i, top in likeliest.items()]
        return {
            "held_out_accuracy": accuracy,
            "held_out_margin": margin,
            "held_out_reward_accuracy": reward_accuracy,
            "held_out_reward_margin": reward_margin,
            "held_out_chosen_change": float(gains[self.good].mean()),
            "held_out_rejected_change": float(gains[self.bad].mean()),
            "held_out_kl": float(np.concatenate(kls).mean()),
        }

    def _compared(self, scores: np.ndarray) -> tuple[float, float]:
        return accuracy_and_margin(scores[self.good], scores[self.bad])


def sides(examples: Sequence[PreferenceExample]) -> tuple[np.ndarray, np.ndarray]:
    """(good, bad) indices of datums to compare: the two sides of each pair, and every labelled good answer with every bad one."""
    starts = np.cumsum([0, *(len(example) for example in examples)])[:-1]
    paired = [start for start, example in zip(starts.tolist(), examples, strict=True) if len(example) == 2]
    good, bad = paired, [start + 1 for start in paired]
    single = [start for start, example in zip(starts.tolist(), examples, strict=True) if len(example) == 1]
    datums = flat(examples)
    labels = {start: int(datums[start].loss_fn_inputs["label"].to_numpy()) for start in single}
    crossed = [(i, j) for i in single if labels[i] for j in single if not labels[j]]
    return np.array([*good, *(i for i, _ in crossed)], int), np.array([*bad, *(j for _, j in crossed)], int)


def accuracy_and_margin(good: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """Of [P] and [P] scores: the share of pairs in the right order, ties counted half, and the mean difference."""
    lead = good - bad
    won, equal = lead > ROUNDING, np.abs(lead) <= ROUNDING
    return float((won + 0.5 * equal).mean()), float(lead.mean())


def coarse_kl(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """[N] nats: KL of two distributions given by K logprobs each, [N, K], with all other tokens as one.

    Joining outcomes never raises a KL (the data processing inequality), so it is a lower bound.
    """
    before, now = before.astype(np.float64), now.astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    rest_before = np.clip(1 - np.exp(before).sum(1), tiny, 1)
    rest_now = np.clip(1 - np.exp(now).sum(1), tiny, 1)
    listed = (np.exp(before) * np.where(np.isneginf(before), 0, before - now)).sum(1)
    return np.maximum(listed + rest_before * np.log(rest_before / rest_now), 0)


def _with_candidates(datum: Datum, top: TopLogprobs | None) -> Datum:
    """The datum with its own targets in the first column and the candidates, of weight 0, in the others."""
    targets, weights = (datum.loss_fn_inputs[key].to_numpy() for key in ("target_tokens", "weights"))
    if top is None:
        return Datum(datum.model_input, {"target_tokens": targets, "weights": weights})
    zeros = np.zeros(top.tokens.shape, np.float32)
    return Datum(
        datum.model_input,
        {
            "target_tokens": np.concatenate([targets[:, None], top.tokens], axis=1),
            "weights": np.concatenate([weights[:, None], zeros], axis=1),
        },
    )
