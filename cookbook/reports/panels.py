"""The panels of plots and reports: which metrics are drawn, and which of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..diagnose.history import is_named, is_number

#: The rows of a run's metrics.jsonl.
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One set of axes. title: the quantity with its unit; keys: the metrics drawn, if they were recorded."""

    title: str
    keys: tuple[str, ...]


#: In this order. `grpo/clip_fraction`, a metric of a part of a mixture, counts as `clip_fraction`.
PANELS = (
    Panel("loss", ("loss",)),
    Panel("negative log-likelihood (nats per token)", ("nll", "held_out_nll")),
    Panel("reward", ("reward", "held_out_score")),
    Panel("pairs in the right order (fraction)", ("accuracy", "held_out_accuracy", "held_out_reward_accuracy")),
    Panel("margin of chosen over rejected", ("margin",)),
    Panel("held-out margin", ("held_out_margin", "held_out_reward_margin")),
    Panel("rewards of chosen and rejected answers", ("chosen_reward", "rejected_reward")),
    Panel("change of held-out logprobs since the start (nats)", ("held_out_chosen_change", "held_out_rejected_change")),
    Panel(
        "recall (fraction)", ("in_batch_recall_at_1", "held_out_recall_at_1", "held_out_recall_at_10", "held_out_mrr")
    ),
    Panel("similarity (cosine)", ("positive_similarity", "negative_similarity")),
    Panel("KL to the teacher (nats per token)", ("teacher_kl", "held_out_reverse_kl", "held_out_forward_kl")),
    Panel("KL to the reference (nats per token)", ("ref_kl", "held_out_kl")),
    Panel("sampler against trainer (KL, nats per token)", ("mismatch_k3",)),
    Panel("tokens beyond the clip (fraction)", ("clip_fraction",)),
    Panel("entropy (nats per token)", ("sampler_entropy", "entropy")),
    Panel("answer length (tokens)", ("response_length",)),
    Panel("truncated answers and groups without signal (fraction)", ("truncated_fraction", "zero_advantage_groups")),
    Panel("gradient norm", ("grad_norm",)),
)
#: If one of these was recorded, the likelihood of sampled or compared answers means little.
_BEYOND_LIKELIHOOD = ("reward", "accuracy", "in_batch_recall_at_1")


def recorded(runs: Mapping[str, Rows]) -> list[str]:
    """The metrics that the runs recorded, without `step`, in order of first appearance."""
    return [key for key in dict.fromkeys(key for rows in runs.values() for row in rows for key in row) if key != "step"]


def default_panels(runs: Mapping[str, Rows], losses: Mapping[str, Any] | None = None) -> list[Panel]:
    """The panels for the recorded metrics. losses: each run's loss; values of different losses are not drawn together."""
    keys_recorded = recorded(runs)
    panels: list[Panel] = []
    for panel in PANELS:
        keys = tuple(key for name in panel.keys for key in keys_recorded if is_named(key, name))
        if keys and not _is_redundant(panel, runs, keys_recorded, losses or {}):
            is_alone = len(keys) == 1 and len(panel.keys) > 1 and keys[0].startswith("held_out_")
            panels.append(Panel(_readable(keys[0]) if is_alone else panel.title, keys))
    drawn = {key for panel in PANELS for key in panel.keys}
    more = [key for key in keys_recorded if key.startswith("held_out_") and key not in drawn]
    return panels + [Panel(_readable(key), (key,)) for key in more]


def panels_of(keys: Sequence[str]) -> list[Panel]:
    """One panel per metric."""
    titles = {panel.keys[0]: panel.title for panel in PANELS}
    return [Panel(titles.get(key, key), (key,)) for key in keys]


def _readable(key: str) -> str:
    return key.replace("_", " ").replace("held out", "held-out").replace(" kl", " KL")


def _is_redundant(panel: Panel, runs: Mapping[str, Rows], keys: Sequence[str], losses: Mapping[str, Any]) -> bool:
    """Whether another panel shows the same, or shows it better."""
    if panel.keys[0] == "nll":
        return "held_out_nll" not in keys and any(key in keys for key in _BEYOND_LIKELIHOOD)
    if panel.keys[0] == "loss" and all(any("nll" in row for row in rows) for rows in runs.values()):
        return len(set(map(str, losses.values()))) > 1 or all(map(_loss_is_nll, runs.values()))
    return False


def _loss_is_nll(rows: Rows) -> bool:
    pairs = [(row["loss"], row["nll"]) for row in rows if is_number(row.get("loss")) and is_number(row.get("nll"))]
    return bool(pairs) and bool(np.allclose(*zip(*pairs, strict=True), rtol=1e-4, equal_nan=True))
