"""Measuring preferences on what is never trained on, in the same way for every loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...datums.errors import EmptyLossError
from ...datums.types import Datum
from .examples import Unit, flat
from .references import References

if TYPE_CHECKING:
    from ...trainer import TrainingClient
    from ...trainer.responses import TopLogprobs

#: How many of the likeliest tokens a KL is taken over; all the others together count as one more.
CANDIDATES = 32
#: Scores that differ by less (nats) are taken for equal: it is the rounding between two forwards of the same weights.
ROUNDING = 1e-4


@dataclass(frozen=True)
class HeldOutPreferences:
    """Held-out answers, what the weights at the start say about them, and what `measure` compares with that.

    good, bad   indices of datums: of pairs good[i] is the chosen answer and bad[i] the rejected one to the same prompt;
                of labelled answers every good one is set against every bad one

    measure gives, for every loss alike
        held_out_accuracy          share of pairs whose chosen answer has the higher mean logprob, equal ones half
        held_out_margin            mean of the difference, nats a token
        held_out_reward_accuracy   the same of the implicit reward, Σ (logprobs - those at the start): 1/2 at the start
        held_out_reward_margin     mean of the difference, nats an answer
        held_out_chosen_change, held_out_rejected_change    mean of the implicit reward of either side, nats an answer
        held_out_kl                KL(start || now) at the chosen answers' positions, nats a token: of the start's
                                   likeliest tokens, all others taken as one, so a lower bound, 0 at the start
    """

    datums: list[Datum]
    good: np.ndarray
    bad: np.ndarray
    start: list[np.ndarray]
    likeliest: list[TopLogprobs]

    @classmethod
    def begin(cls, units: Sequence[Unit], references: References) -> HeldOutPreferences | None:
        """Ask the weights at the start; None where nothing is held out. Raises EmptyLossError where nothing is to compare."""
        if not units:
            return None
        datums = flat(units)
        good, bad = sides(units)
        if not len(good):
            raise EmptyLossError(
                f"the {len(datums)} held-out answers have one label, so there is nothing to compare; hold out good and bad ones"
            )
        chosen = [datums[i] for i in np.unique(good)]
        return cls(datums, good, bad, references.logprobs(datums), references.likeliest(chosen, CANDIDATES))

    def measure(self, training: TrainingClient) -> dict[str, float]:
        """Of the weights as they are now; one forward."""
        kept = dict(zip(np.unique(self.good).tolist(), self.likeliest, strict=True))
        asked = [_with_candidates(datum, kept.get(i)) for i, datum in enumerate(self.datums)]
        outputs = training.forward(asked, "cross_entropy").result().loss_fn_outputs
        found = [
            output["logprobs"].to_numpy().reshape(len(start), -1)
            for output, start in zip(outputs, self.start, strict=True)
        ]
        weights = [datum.loss_fn_inputs["weights"].to_numpy() for datum in self.datums]
        means = np.array([(w * now[:, 0]).sum() / w.sum() for w, now in zip(weights, found, strict=True)])
        gains = np.array([(w * (now[:, 0] - s)).sum() for w, now, s in zip(weights, found, self.start, strict=True)])
        accuracy, margin = self._compared(means)
        reward_accuracy, reward_margin = self._compared(gains)
        kls = [coarse_kl(top.logprobs, found[i][:, 1:])[weights[i] != 0] for i, top in kept.items()]
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


def sides(units: Sequence[Unit]) -> tuple[np.ndarray, np.ndarray]:
    """Indices into all datums of what is compared with what: a pair's two sides, else every good answer with every bad one."""
    starts = np.cumsum([0, *(len(unit) for unit in units)])[:-1]
    paired = [start for start, unit in zip(starts.tolist(), units, strict=True) if len(unit) == 2]
    good, bad = [start for start in paired], [start + 1 for start in paired]
    single = [start for start, unit in zip(starts.tolist(), units, strict=True) if len(unit) == 1]
    datums = flat(units)
    labels = {start: int(datums[start].loss_fn_inputs["label"].to_numpy()) for start in single}
    crossed = [(i, j) for i in single if labels[i] for j in single if not labels[j]]
    return np.array([*good, *(i for i, _ in crossed)], int), np.array([*bad, *(j for _, j in crossed)], int)


def accuracy_and_margin(good: np.ndarray, bad: np.ndarray) -> tuple[float, float]:
    """([P], [P]) scores: the share of pairs in the right order, equal ones counted half, and the mean difference."""
    lead = good - bad
    won, equal = lead > ROUNDING, np.abs(lead) <= ROUNDING
    return float((won + 0.5 * equal).mean()), float(lead.mean())


def coarse_kl(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """[N] nats: KL of two distributions given by K logprobs [N, K] each, all other tokens taken as one.

    Joining outcomes never raises a KL (the data processing inequality), so this is at most that of the whole vocabulary.
    """
    before, now = before.astype(np.float64), now.astype(np.float64)
    tiny = np.finfo(np.float32).tiny
    rest_before = np.clip(1 - np.exp(before).sum(1), tiny, 1)
    rest_now = np.clip(1 - np.exp(now).sum(1), tiny, 1)
    listed = (np.exp(before) * np.where(np.isneginf(before), 0, before - now)).sum(1)
    return np.maximum(listed + rest_before * np.log(rest_before / rest_now), 0)


def _with_candidates(datum: Datum, top: TopLogprobs | None) -> Datum:
    """The datum asked for its own tokens, in the first column, and for the candidates, which have no weight."""
    targets, weights = (datum.loss_fn_inputs[key].to_numpy() for key in ("target_tokens", "weights"))
    if top is None:
        return Datum(datum.model_input, {"target_tokens": targets, "weights": weights})
    beside = np.zeros(top.tokens.shape, np.float32)
    return Datum(
        datum.model_input,
        {
            "target_tokens": np.concatenate([targets[:, None], top.tokens], axis=1),
            "weights": np.concatenate([weights[:, None], beside], axis=1),
        },
    )
