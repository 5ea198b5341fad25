"""What an adapter asks before a trainer runs: that the trainer hands over what the loss reads, and no setting is said twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import LossConfigError, LossContractError, MissingInput
from ..losses.ids import LossId, MixtureId, PresetId
from ..losses.loss.loss import Loss, LossLike
from ..losses.registry import get_loss
from ..losses.spec.top import TOP_OUTPUTS
from ..losses.variants.rollout import CORRECTED_ALREADY

#: What `get_loss` takes: an id, a loss with its settings, or a function of one's own.
AnyLoss = LossId | PresetId | MixtureId | str | LossLike | Callable[..., Any]
#: Model outputs that logits give.
OF_LOGITS = ("logprobs", "entropy", "logsumexp", "mean_logprobs", *TOP_OUTPUTS)


def adapted(loss: AnyLoss, settings: Mapping[str, Any], where: str) -> LossLike:
    """The loss with its settings. Raises LossContractError for one that asks for datums instead of tensors."""
    made: LossLike = get_loss(loss, **settings)
    for _, part in made.parts:
        if part.spec.is_batch_style:
            raise LossContractError(
                f"{where} hands over tensors, and {part.name} is fn(data, logprobs_list), which reads datums: write it as a "
                "function of tensors (docs/start/your-own-loss.md)"
            )
    return made.copied()


def remade(loss: LossLike, change: Callable[[Loss], Loss]) -> LossLike:
    """The same loss, or mixture, of changed parts."""
    if isinstance(loss, Loss):
        return change(loss)
    parts = [factor * change(part) for factor, part in loss.parts]
    return sum(parts[1:], parts[0])


def denominators(loss: LossLike, count: Any) -> Tensor | None:
    """[parts]: `count`, and 0 for parts that are sums, which nothing divides. None for None: each call counts its own."""
    if count is None:
        return None
    return torch.stack(
        [
            torch.as_tensor(0 if part.reduction == "sum" else count, dtype=torch.float64).reshape(())
            for _, part in loss.parts
        ]
    )


def wanted(loss: LossLike, *, optional: bool = False) -> list[str]:
    """The inputs that its parts need under their settings; with `optional`, those that they would read too."""
    return list(dict.fromkeys(name for _, part in loss.parts for name in _wanted(part, optional)))


def _wanted(part: Loss, optional: bool) -> Iterable[str]:
    needed = {name for name, setting in part.spec.required_if.items() if part.settings.get(setting)}
    return [one.name for one in part.spec.inputs if optional or one.required or one.name in needed]


def reads(loss: LossLike, name: str) -> bool:
    """Whether the loss needs this input under its settings."""
    return name in wanted(loss)


def is_against_rollout(loss: LossLike) -> bool:
    """Whether `sampling_logprobs` are those that the inference engine reported, even where the trainer recomputed them.

    So it is in losses whose own weights are made of the whole ratio to the rollout, such as "dppo". Raises LossContractError
    for a mixture with others.
    """
    kinds = {
        part.spec.name.split("+")[0] in CORRECTED_ALREADY
        for _, part in loss.parts
        if "sampling_logprobs" in part.spec.keys
    }
    if len(kinds) > 1:
        raise LossContractError(
            f"{loss.name}: one part's ratio is to the rollout's own logprobs, the other's to recomputed ones: give them apart"
        )
    return kinds == {True}


def check_reads(
    loss: LossLike, where: str, *, outputs: Collection[str], inputs: Collection[str], instead: str = ""
) -> None:
    """Raise for a model output or an input that the loss reads and `where` does not give.

    instead: where it could run, for the message.
    """
    for _, part in loss.parts:
        own: LossLike = part
        missing = [name for name in own.outputs if name not in outputs]
        missing += [name for name in wanted(own) if name not in inputs]
        missing += [] if part.label == part.name or part.weights in inputs else [part.weights]
        if missing:
            given = ", ".join([*outputs, *inputs])
            raise MissingInput(
                f"{part.name} reads {', '.join(map(repr, missing))}, and {where} gives {given}"
                f"{'. ' if instead else ''}{instead}"
            )


def check_default(config: Any, names: Iterable[str], where: str, loss: LossLike) -> None:
    """Raise where a setting of the trainer's own loss was changed, because the loss in its place does not read it.

    config: a dataclass instance. Names that this release of the library does not have are passed over.
    """
    defaults = {one.name: one for one in dataclasses.fields(config)}
    for name in names:
        if name not in defaults:
            continue
        field = defaults[name]
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (value := getattr(config, name)) != default:
            raise LossConfigError(
                f"{where}: {name}={value!r} is a setting of the trainer's own loss, which {loss.name} replaces. Leave it at "
                f"{default!r}, and set what you mean in the loss: {settings_of(loss)}"
            )


def check_values(config: Any, defaults: Mapping[str, Any], where: str, loss: LossLike) -> None:
    """As `check_default`, for a config of any kind: by attribute, dotted where it is nested."""
    for path, default in defaults.items():
        value = config
        for name in path.split("."):
            value = getattr(value, name, None)
        if value is not None and value != default:
            raise LossConfigError(
                f"{where}: {path}={value!r} is a setting of {where}'s own loss, which {loss.name} replaces. Leave it at "
                f"{default!r}, and set what you mean in the loss: {settings_of(loss)}"
            )


def settings_of(loss: LossLike) -> str:
    """The settings that its parts have, for a message."""
    return "; ".join(f"{part.name} has {', '.join(['reduction', *part.settings])}" for _, part in loss.parts)


def check_couples(loss: LossLike, allowed: Collection[str], why: str) -> None:
    """Raise for a part that must see more together than a micro-batch holds."""
    for _, part in loss.parts:
        own: LossLike = part
        if own.couples not in allowed:
            raise LossContractError(f"{part.name} couples a whole {own.couples}, and {why}")
