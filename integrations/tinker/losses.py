"""Which loss of lossbook an id of Tinker means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ...datums.errors import LossbookError, UnknownInput, UnknownLossError
from ...losses.loss.loss import Loss, LossLike
from ...losses.registry import get_loss
from ...losses.spec.spec import make_spec
from ...losses.variants.presets import list_presets

#: A loss whose formula only the service has.
UNPUBLISHED = "stable_reinforce"
#: Registered losses that are nearest to it, nearest first.
NEAREST = ("importance_sampling", "ppo", "cispo")
#: Tinker's own losses: sums over tokens, with its bounds. Lossbook's of the same names are means.
TINKERS = tuple(name.removeprefix("tinker:") for name in list_presets() if name.startswith("tinker:"))

_BOUNDS = ("clip_low_threshold", "clip_high_threshold")


def loss_of(name: str, config: Mapping[str, Any] | None, stand_in: str | None) -> LossLike:
    """The loss that `forward_backward(data, name, config)` means in Tinker's API.

    name       one of Tinker's, which is then its sum over tokens; or any other id of lossbook, with that loss's own reduction
    config     its settings, in Tinker's spelling (`clip_low_threshold`) or ours
    stand_in   what `stable_reinforce` means here; None: it is refused

    Raises UnknownLossError or LossConfigError.
    """
    if name == UNPUBLISHED:
        name = _stand_in(stand_in)
    if name == "custom":
        raise UnknownLossError(
            "'custom' is what forward_backward_custom(data, handle) sends to a server. Call that: a custom loss runs in this "
            "process"
        )
    if name == "cross_entropy":
        return Loss(_CROSS_ENTROPY, {"reduction": "sum", **(config or {})})
    return get_loss(f"tinker:{name}" if name in TINKERS else name, **(config or {}))


def cross_entropy(logprobs: Tensor, weights: Tensor | None = None) -> Tensor:
    """-weights logprobs, of all positions: also one of weight 0 gets its logprob from the model, as in Tinker.

    logprobs   [T] or [T, K]  nats, of the target tokens
    weights    [T] or [T, K]  unitless; 1 where there are none
    returns    [T] or [T, K]  nats
    """
    return -logprobs if weights is None else -weights * logprobs


#: Lossbook's own cross_entropy leaves positions of weight 0 out, and gives logprobs of 0 there.
_CROSS_ENTROPY = make_spec(cross_entropy, "cross_entropy", per="token", linear=True)


def check_inputs(name: Any, data: Sequence[Any]) -> None:
    """Raise UnknownInput for what Tinker's losses read in a datum and lossbook's do not: bounds of each token of its own."""
    for i, datum in enumerate(data if name in TINKERS else ()):
        for key in _BOUNDS:
            if key in datum.loss_fn_inputs:
                raise UnknownInput(
                    f"datum {i} of {len(data)} carries {key!r}, but {name} has one bound for all tokens here: "
                    f"loss_fn_config={{{key!r}: ...}}"
                )


def check_stand_in(stand_in: str | None) -> None:
    """Raise UnknownLossError unless something stands in for `stable_reinforce`."""
    _stand_in(stand_in)


def _stand_in(stand_in: str | None) -> str:
    if stand_in == UNPUBLISHED:
        raise UnknownLossError(f"the setting stable_reinforce names {UNPUBLISHED!r} itself: name another loss")
    if stand_in is not None:
        try:
            loss_of(stand_in, None, None)
        except LossbookError as error:
            raise UnknownLossError(f"the setting stable_reinforce={stand_in!r} is no loss: {error}") from None
        return stand_in
    nearest = ", ".join(map(repr, NEAREST))
    raise UnknownLossError(
        f"{UNPUBLISHED!r} cannot run here: its formula is not public. The nearest are {nearest}: give one of them as loss_fn, or "
        f"choose a stand-in for code that cannot be changed: LOSSBOOK_TINKER_STABLE_REINFORCE={NEAREST[0]}, or "
        f"configure(stable_reinforce={NEAREST[0]!r})"
    )
