"""Which loss a request means: a registered one by its id, or a client's own that came as a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....datums.errors import UnknownLossError, nearest
from ....losses.registry import list_losses, spec_of
from ....losses.variants.presets import list_presets
from ...tinker.losses import NEAREST, UNPUBLISHED


def check_loss_id(name: str, stand_in: str | None) -> None:
    """Raise UnknownLossError for a loss that clients cannot ask for by name.

    stand_in: what `stable_reinforce` means here. "module:function", which lossbook itself imports, is none: clients run no code
    of the server's.
    """
    base = name.partition("+")[0]
    if ":" in name and base not in list_presets() and base not in list_losses():
        raise UnknownLossError(
            f"no loss is registered as {name!r}.{nearest(name, [*list_losses(), *list_presets()])} A function of a module is not "
            "taken from clients"
        )
    if name == UNPUBLISHED and stand_in is None:
        raise UnknownLossError(
            f"{UNPUBLISHED!r} cannot run here: its formula is not public. The nearest are {', '.join(map(repr, NEAREST))}: give one of "
            "them as loss_fn. Whoever runs the server can choose a stand-in, with its setting stable_reinforce"
        )


def settings_of(name: str, config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A loss's settings as lossbook takes them. The protocol's numbers are all floats, so whole numbers and flags are made of them."""
    if not config:
        return None
    fields = spec_of(name).config.model_fields if name in list_losses() else {}
    return {key: _as_sent(value, getattr(fields.get(key), "annotation", None)) for key, value in config.items()}


def _as_sent(value: Any, kind: Any) -> Any:
    if not isinstance(value, float) or not value.is_integer() or abs(value) >= 2**53:
        return value
    return bool(value) if kind is bool and value in (0, 1) else int(value)
