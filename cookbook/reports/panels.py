"""Which recorded quantities are drawn, and together with which others: the same for pictures and for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnose.history import is_number

#: A run's rows, as `read_metrics` gives them.
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One set of axes. keys: what is drawn on it, of what was recorded; title: what that is, with its unit."""

    title: str
    keys: tuple[str, ...]


#: In this order, for as much of it as the runs recorded. A mixture's part's metric, `grpo/clip_fraction`, counts as `clip_fraction`.
PANELS = (
    Panel("loss", ("loss",)),
    Panel("negative log-likelihood (nats a token)", ("nll", "held_out_nll")),
    Panel("reward", ("reward", "held_out_score")),
    Panel("pairs in the right order (fraction)", ("accuracy", "held_out_accuracy", "held_out_reward_accuracy")),
    Panel("margin of chosen over rejected", ("margin",)),
    Panel("held-out margin", ("held_out_margin", "held_out_reward_margin")),
    Panel("rewards of chosen and rejected answers", ("chosen_reward", "rejected_reward")),
    Panel("held-out answers' logprobs since the start (nats)", ("held_out_chosen_change", "held_out_rejected_change")),
    Panel(
        "recall (fraction)", ("in_batch_recall_at_1", "held_out_recall_at_1", "held_out_recall_at_10", "held_out_mrr")
    ),
    Panel("similarity (cosine)", ("positive_similarity", "negative_similarity")),
    Panel("KL to the teacher (nats a token)", ("teacher_kl", "held_out_reverse_kl", "held_out_forward_kl")),
    Panel("KL to the reference (nats a token)", ("ref_kl", "held_out_kl")),
    Panel("sampler against trainer (KL, nats a token)", ("mismatch_k3",)),
    Panel("tokens beyond the clip (fraction)", ("clip_fraction",)),
    Panel("entropy (nats a token)", ("sampler_entropy", "entropy")),
    Panel("length of an answer (tokens)", ("response_length",)),
    Panel("answers cut off, groups that teach nothing", ("truncated_fraction", "zero_advantage_groups")),
    Panel("gradient norm", ("grad_norm",)),
)
#: Where one of these was recorded, the likelihood of sampled or compared answers says little.
_BEYOND_LIKELIHOOD = ("reward", "accuracy", "in_batch_recall_at_1")


def recorded(runs: Mapping[str, Rows]) -> list[str]:
    """What the runs recorded, `step` apart, in the order in which it first was."""
    return [key for key in dict.fromkeys(key for rows in runs.values() for row in rows for key in row) if key != "step"]


def default_panels(runs: Mapping[str, Rows], losses: Mapping[str, Any] | None = None) -> list[Panel]:
    """The panels for what the runs recorded. losses: each run's loss, for values of different losses are not comparable."""
    there = recorded(runs)
    panels: list[Panel] = []
    for panel in PANELS:
        keys = tuple(key for name in panel.keys for key in there if key == name or key.rpartition("/")[2] == name)
        if keys and not _is_idle(panel, runs, there, losses or {}):
            is_alone = len(keys) == 1 and len(panel.keys) > 1 and keys[0].startswith("held_out_")
            panels.append(Panel(_spoken(keys[0]) if is_alone else panel.title, keys))
    drawn = {key for panel in PANELS for key in panel.keys}
    more = [key for key in there if key.startswith("held_out_") and key not in drawn]
    return panels + [Panel(_spoken(key), (key,)) for key in more]


def panels_of(keys: Sequence[str]) -> list[Panel]:
    """A panel for each key."""
    titles = {panel.keys[0]: panel.title for panel in PANELS}
    return [Panel(titles.get(key, key), (key,)) for key in keys]


def _spoken(key: str) -> str:
    return key.replace("_", " ").replace("held out", "held-out").replace(" kl", " KL")


def _is_idle(panel: Panel, runs: Mapping[str, Rows], there: Sequence[str], losses: Mapping[str, Any]) -> bool:
    """Whether a panel would say nothing that another does not say better."""
    if panel.keys[0] == "nll":
        return "held_out_nll" not in there and any(key in there for key in _BEYOND_LIKELIHOOD)
    if panel.keys[0] == "loss" and all(any("nll" in row for row in rows) for rows in runs.values()):
        return len(set(map(str, losses.values()))) > 1 or all(map(_loss_is_nll, runs.values()))
    return False


def _loss_is_nll(rows: Rows) -> bool:
    pairs = [(row["loss"], row["nll"]) for row in rows if is_number(row.get("loss")) and is_number(row.get("nll"))]
    return bool(pairs) and bool(np.allclose(*zip(*pairs, strict=True), rtol=1e-4, equal_nan=True))
