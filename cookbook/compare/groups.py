"""Runs that differ in their seeds alone, as one setting with a mean; and settings beside each other, seed by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..diagnose.intervals import Mean, mean_of
from ..diagnose.numbers import SAME_METHOD, direction
from .numbers import best_of
from .summary import RunSummary

#: Settings that tell runs apart without changing what is trained.
NO_DIFFERENCE = {*SAME_METHOD, "sample_prompts", "sample_every", "sample_tokens", "references"}
#: Longer labels are replaced by the folder's name.
LONGEST = 60


@dataclass(frozen=True)
class Group:
    """Runs with equal settings but for the seed. settings: those in which the groups differ."""

    label: str
    runs: tuple[RunSummary, ...]
    settings: Mapping[str, Any]

    @property
    def seeds(self) -> list[Any]:
        """Their seeds."""
        return [run.settings.get("seed") for run in self.runs]

    def values(self, key: str) -> dict[Any, float]:
        """A metric's final numbers by seed."""
        return {seed: run.numbers[key] for seed, run in zip(self.seeds, self.runs, strict=True) if key in run.numbers}

    def mean(self, key: str) -> Mean | None:
        """A metric's mean over the seeds; None where no run recorded it."""
        values = list(self.values(key).values())
        return mean_of(values) if values else None

    def minus(self, other: Group, key: str) -> Mean | None:
        """The mean of the differences to another group over the seeds that both have; None where they share none."""
        own, others = self.values(key), other.values(key)
        differences = [own[seed] - others[seed] for seed in own if seed in others]
        return mean_of(differences) if differences else None


def grouped(runs: Sequence[RunSummary], names: Mapping[Any, str] | None = None) -> list[Group]:
    """The runs by their settings, in the order in which these come. names: labels of folders, for runs without another.

    Runs with the same seed and the same settings are each a group of their own: they are no two samples.
    """
    flat = [flattened(run.settings) for run in runs]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each) if key not in NO_DIFFERENCE]
    differing = [key for key in keys if len({_text(each.get(key)) for each in flat}) > 1]
    members: dict[str, list[int]] = {}
    for i, each in enumerate(flat):
        members.setdefault(_text([each.get(key) for key in differing]), []).append(i)
    groups: list[Group] = []
    for indices in members.values():
        seeds = [flat[i].get("seed") for i in indices]
        parts = [indices] if len(set(seeds)) == len(seeds) else [[i] for i in indices]
        for part in parts:
            settings = {key: flat[part[0]].get(key) for key in differing}
            own = tuple(runs[i] for i in part)
            groups.append(Group(_label(settings, own, names or {}, is_alone=len(parts) > 1), own, settings))
    return _with_distinct_labels(groups)


def flattened(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings with those of a mapping by a dotted name: `loss_config.beta`."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = value
    return flat


def compared(groups: Sequence[Group], keys: Sequence[str]) -> dict[str, Any]:
    """All of a comparison as JSON values."""
    return {
        "directions": {key: {1: "higher", -1: "lower", 0: None}[direction(key)] for key in keys},
        "best": {key: best(groups, key) for key in keys},
        "groups": [
            {
                "label": group.label,
                "settings": dict(group.settings),
                "seeds": group.seeds,
                "runs": [run.as_dict() for run in group.runs],
                "numbers": {key: _numbers(group, groups[0], key) for key in keys if group.values(key)},
            }
            for group in groups
        ],
    }


def best(groups: Sequence[Group], key: str) -> list[str]:
    """The labels of the groups with the best mean."""
    return best_of(key, [(group.label, mean.value) for group in groups if (mean := group.mean(key)) is not None])


def _numbers(group: Group, first: Group, key: str) -> dict[str, Any]:
    mean = group.mean(key)
    minus = group.minus(first, key) if group is not first else None
    return {
        **_mean(mean),
        "by_seed": {str(seed): x for seed, x in group.values(key).items()},
        "minus_first": _mean(minus),
    }


def _mean(mean: Mean | None) -> dict[str, Any]:
    return {} if mean is None else {"mean": mean.value, "interval": mean.interval, "n": mean.count}


def _label(settings: Mapping[str, Any], runs: Sequence[RunSummary], names: Mapping[Any, str], *, is_alone: bool) -> str:
    label = settings_text(settings)
    if settings and len(label) <= LONGEST and not is_alone:
        return label
    name = names.get(runs[0].folder, runs[0].folder.name)
    return name if len(runs) == 1 else f"{name} and {len(runs) - 1} more seed{'s' * (len(runs) > 2)}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line: `loss=dpo, loss_config.beta=0.1`; of a path its last part."""
    return ", ".join(f"{key}={_short(value)}" for key, value in settings.items())


def _with_distinct_labels(groups: list[Group]) -> list[Group]:
    """Groups whose labels would be alike, such as long settings cut short, by their first run's folder."""
    labels = [group.label for group in groups]
    return [
        group if labels.count(group.label) == 1 else Group(str(group.runs[0].folder), group.runs, group.settings)
        for group in groups
    ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else _text(value)
    return text.rstrip("/").rpartition("/")[2] if "/" in text else text


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
