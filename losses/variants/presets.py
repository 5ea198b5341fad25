"""Presets: another system's loss by that system's name, such as "trl:grpo" or "tinker:ppo".

They are data, a file for each system in systems/: one of our losses, the settings that make it theirs, the release that they
were read from, and what of theirs it leaves out. Your own settings go on top: `get_loss("trl:grpo", clip_high=1.28)`.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from ...datums.display import one_line
from ...datums.errors import LossConfigError, UnknownLossError, nearest
from ..ids import MixtureId, PresetId
from ..loss.loss import Loss, Mixture
from ..registry import get_loss, register_resolver, reserve_ids

#: Losses that a system offers under a name, but whose formula is not public; so nobody else can offer them.
UNPUBLISHED: Mapping[str, str] = {
    "stable_reinforce": (
        "the id is reserved for Tinker's loss of this name, whose formula is not public (it also wants samples taken with "
        "record_stability_info), so it is not offered. For a policy gradient that stays stable off policy use `cispo` or "
        "`dppo`, with `sampler_kl` added as a trust region"
    ),
}
reserve_ids(UNPUBLISHED)


@dataclass(frozen=True)
class Part:
    """A loss that a preset adds to its own, times a factor."""

    factor: float
    loss: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """One entry of a file in systems/. `print` it, or read the fields.

    package, version: the release that the numbers are from; a commit, or the month, of what has no releases. read_from: both,
    and where in it. note: what of that system's loss it leaves out, or does otherwise. plus: losses that are added. correction: the rollout correction that the system multiplies by where its rollouts come
    from an inference engine; `get_loss("trl:grpo+correction")` has it.
    """

    name: str
    loss: str
    package: str
    version: str
    note: str
    where: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    plus: tuple[Part, ...] = ()
    correction: str = ""
    correction_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def read_from(self) -> str:
        return f"{self.package} {self.version}{', ' if self.where else ''}{self.where}"

    def __repr__(self) -> str:
        return one_line(f"<Preset {self.name}: {self.loss} with {_shown(self.settings)}>")

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.loss} with {_shown(self.settings)}"]
        lines += [f"plus {part.factor:g} * {part.loss} with {_shown(part.settings)}" for part in self.plus]
        if self.correction:
            lines.append(f"+correction: {self.correction} with {_shown(self.correction_settings)}")
        return "\n".join([*lines, f"read from: {self.read_from}", f"not the same: {self.note}"])


def list_presets() -> list[str]:
    """All preset names, sorted."""
    return sorted(_presets())


def describe_preset(name: PresetId | MixtureId | str) -> Preset:
    """What a preset stands for. Raises UnknownLossError with the likeliest name."""
    if (preset := find_preset(name)) is None:
        raise UnknownLossError(f"there is no preset {name!r}.{nearest(name, _presets())} list_presets() gives all.")
    return preset


def find_preset(name: str) -> Preset | None:
    """The preset of this name; None where the part before the colon is no system's.

    Raises UnknownLossError where it is: "tinker:pro" is a misspelling, not a module to import.
    """
    preset = _presets().get(name)
    system, colon, own = name.partition(":")
    if preset is not None or not colon or system not in {known.partition(":")[0] for known in _presets()}:
        return preset
    if own in UNPUBLISHED:
        raise UnknownLossError(f"{name!r}: {UNPUBLISHED[own]}")
    there = [known for known in list_presets() if known.startswith(f"{system}:")]
    raise UnknownLossError(
        f"there is no preset {name!r}.{nearest(name, there)} `lossbook losses list --presets` gives all."
    )


def preset_loss(preset: Preset, config: Mapping[str, Any], *, is_corrected: bool = False) -> Loss | Mixture:
    """The loss that a preset stands for, with `config` on top of its settings."""
    name, settings = preset.loss, preset.settings
    if is_corrected:
        if not preset.correction:
            raise LossConfigError(f"{preset.name}: no correction is known of that system; name one")
        name, settings = f"{preset.loss}+{preset.correction}", {**preset.settings, **preset.correction_settings}
    loss = get_loss(get_loss(name, **settings), **config)
    for part in preset.plus:
        loss = loss + part.factor * get_loss(part.loss, **part.settings)
    return loss


@register_resolver
def _named(name: str, config: Mapping[str, Any]) -> Loss | Mixture | None:
    if name.endswith("+correction"):
        return preset_loss(describe_preset(name.removesuffix("+correction")), config, is_corrected=True)
    preset = None if "+" in name else find_preset(name)
    return None if preset is None else preset_loss(preset, config)


@functools.cache
def _presets() -> dict[str, Preset]:
    presets: dict[str, Preset] = {}
    for file in files(__name__.rpartition(".")[0]).joinpath("systems").iterdir():
        system, _, _ = file.name.rpartition(".toml")
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        release = {key: tables.pop(key) for key in ("package", "version") if key in tables}
        for name, table in tables.items():
            plus = tuple(Part(**part) for part in table.pop("plus", ()))
            presets[f"{system}:{name}"] = Preset(name=f"{system}:{name}", plus=plus, **{**release, **table})
    return presets


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "its defaults"
