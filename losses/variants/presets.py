"""Presets: another system's loss by that system's name, such as "trl:grpo" or "tinker:ppo".

They are data, in presets.toml: one of our losses, the settings that make it theirs, the release that they were read from, and
what of theirs it leaves out. Your own settings go on top: `get_loss("trl:grpo", clip_high=1.28)`.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from ...datums.errors import LossConfigError, UnknownLossError, did_you_mean
from ..loss.loss import Loss
from ..loss.mixture import Mixture
from ..registry import get_loss

#: Losses that a system offers under a name, but whose formula is not public; so nobody else can offer them.
UNPUBLISHED: Mapping[str, str] = {
    "stable_reinforce": (
        "the id is reserved for Tinker's loss of this name, whose formula is not public (it also wants samples taken with "
        "record_stability_info), so it is not offered. For a policy gradient that stays stable off policy use `cispo` or "
        "`dppo`, with `sampler_kl` added as a trust region"
    ),
}


@dataclass(frozen=True)
class Part:
    """A loss that a preset adds to its own, times a factor."""

    factor: float
    loss: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """One entry of presets.toml. `print` it, or read the fields.

    read_from: the release the numbers are from. note: what of that system's loss it leaves out, or does otherwise.
    plus: losses that are added. correction: the rollout correction that the system multiplies by where its rollouts come
    from an inference engine; `get_loss("trl:grpo+correction")` has it.
    """

    name: str
    loss: str
    read_from: str
    note: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    plus: tuple[Part, ...] = ()
    correction: str = ""
    correction_settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.loss} with {_shown(self.settings)}"]
        lines += [f"plus {part.factor:g} * {part.loss} with {_shown(part.settings)}" for part in self.plus]
        if self.correction:
            lines.append(f"+correction: {self.correction} with {_shown(self.correction_settings)}")
        return "\n".join([*lines, f"read from: {self.read_from}", f"not the same: {self.note}"])


def list_presets() -> list[str]:
    """All preset names, sorted."""
    return sorted(_presets())


def describe_preset(name: str) -> Preset:
    """What a preset stands for. Raises UnknownLossError with the likeliest name."""
    if (found := find_preset(name)) is None:
        raise UnknownLossError(f"there is no preset {name!r}.{did_you_mean(name, _presets())}")
    return found


def find_preset(name: str) -> Preset | None:
    """The preset of this name; None where the part before the colon is no system's.

    Raises UnknownLossError where it is: "tinker:pro" is a misspelling, and nothing to be imported.
    """
    found = _presets().get(name)
    system, colon, own = name.partition(":")
    if found is not None or not colon or system not in {known.partition(":")[0] for known in _presets()}:
        return found
    if own in UNPUBLISHED:
        raise UnknownLossError(f"{name!r}: {UNPUBLISHED[own]}")
    there = [known for known in list_presets() if known.startswith(f"{system}:")]
    raise UnknownLossError(f"there is no preset {name!r}.{did_you_mean(name, there)} Of {system}: {', '.join(there)}")


def preset_loss(preset: Preset, config: Mapping[str, Any], *, is_corrected: bool = False) -> Loss | Mixture:
    """What a preset stands for, with `config` on top of the settings of its own loss."""
    loss = get_loss(preset.loss, **preset.settings)
    if is_corrected:
        if not preset.correction:
            raise LossConfigError(f"{preset.name}: that system corrects nothing, as far as is known; name a correction")
        loss = get_loss(f"{preset.loss}+{preset.correction}", **preset.settings, **preset.correction_settings)
    loss = get_loss(loss, **config)
    for part in preset.plus:
        loss = loss + part.factor * get_loss(part.loss, **part.settings)
    return loss


@functools.cache
def _presets() -> dict[str, Preset]:
    tables = tomllib.loads(files(__name__.rpartition(".")[0]).joinpath("presets.toml").read_text(encoding="utf-8"))
    found: dict[str, Preset] = {}
    for name, table in tables.items():
        plus = tuple(Part(**part) for part in table.pop("plus", ()))
        found[name] = Preset(name=name, plus=plus, **table)
    return found


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "its defaults"
