"""The loss on the page: its settings in the run, and the card of each part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ...losses.cards.card import describe_loss
from ...losses.registry import list_losses
from ..pages.render import render, shown

#: Properties of policy losses; others have none of them.
_AXES = {"ratio": "ratio", "clip": "clip", "KL": "kl"}


def loss_html(settings: Mapping[str, Any], recorded: Mapping[str, Any], *, is_open: bool) -> Markup:
    """The loss with its resolved settings, and the card of each part, open or folded.

    recorded: the run's loss.json. Without it the registry's card is shown. A loss in a user's module is not imported: a
    report runs no code that a run's folder names.
    """
    if recorded:
        return _html(recorded["loss"], recorded["parts"], "settings in this run", is_recorded=True, is_open=is_open)
    name = str(settings.get("loss", "unknown"))
    cards = [describe_loss(name).as_dict()] if name in list_losses() else []
    loss = f"{name} {shown(settings.get('loss_config') or {})}"
    return _html(loss, cards, "default settings", name=name, is_recorded=False, is_open=is_open)


def _html(loss: str, cards: Sequence[Mapping[str, Any]], settings_title: str, **values: Any) -> Markup:
    """cards: of `LossCard.as_dict()`."""
    return render("loss", loss=loss, cards=[_card(card) for card in cards], settings_title=settings_title, **values)


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the template shows of a card."""
    axes = [
        ("one value per", card["per"]),
        *((name, axis) for name, key in _AXES.items() if (axis := card["axes"][key]) != "none"),
        ("reduction", card["reduction"]),
        ("source", card["source"] or "not stated"),
        ("defined in", card["defined_in"]),
    ]
    factor = f"{card['factor']:g} × " if card.get("factor", 1.0) != 1.0 else ""
    return {
        "title": f"card of {factor}{card['name']}",
        "formula": card["formula"],
        "paragraphs": [joined for text in card["description"].split("\n\n") if (joined := " ".join(text.split()))],
        "axes": axes,
        "tensors": [(t["name"], t["shape"], t["unit"], t["meaning"]) for t in _values(card["outputs"], card["inputs"])],
        "settings": [(s["name"], s["default"], s["type"], s["bounds"]) for s in _values(card["settings"])],
        "differs": list(card["differs"].items()),
    }


def _values(*named: Mapping[str, Any]) -> list[Any]:
    return [value for mapping in named for value in mapping.values()]
