"""The loss on the page: its settings in the run, and the card of each part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...losses.cards.card import describe_loss
from ...losses.registry import list_losses
from .markup import folded, shown, table, text


def loss_html(settings: Mapping[str, Any], recorded: Mapping[str, Any], *, is_open: bool) -> str:
    """The loss with its resolved settings, and the card of each part, open or folded.

    recorded: the run's loss.json. Without it the registry's card is shown. A loss in a user's module is not imported: a
    report runs no code that a run's folder names.
    """
    if recorded:
        cards = "".join(_card_html(part, "settings in this run", is_open=is_open) for part in recorded["parts"])
        return f"<p>In this run:</p><pre>{text(recorded['loss'])}</pre>{cards}"
    name = str(settings.get("loss", "unknown"))
    html = f"<pre>{text(name)} {text(shown(settings.get('loss_config') or {}))}</pre>"
    if name not in list_losses():
        return f"{html}<p>The run recorded no card for this loss, and {text(name)} is not registered.</p>"
    return html + _card_html(describe_loss(name).as_dict(), "default settings", is_open=is_open)


def _card_html(card: Mapping[str, Any], settings_title: str, *, is_open: bool) -> str:
    """card: `LossCard.as_dict()`."""
    axes = [
        ("one value per", card["per"]),
        ("ratio", card["axes"]["ratio"]),
        ("clip", card["axes"]["clip"]),
        ("KL", card["axes"]["kl"]),
        ("reduction", card["reduction"]),
        ("source", card["source"] or "not stated"),
        ("defined in", card["defined_in"]),
    ]
    tensors = [(t["name"], t["shape"], t["unit"], t["meaning"]) for t in _values(card["outputs"], card["inputs"])]
    rows = [(s["name"], s["default"], s["type"], s["bounds"]) for s in _values(card["settings"])]
    paragraphs = [" ".join(paragraph.split()) for paragraph in card["description"].split("\n\n")]
    body = [
        f"<pre>{text(card['formula'])}</pre>" if card["formula"] else "",
        *(f"<p>{text(paragraph)}</p>" for paragraph in paragraphs if paragraph),
        table(axes),
        f"<h4>inputs</h4>{table(tensors)}" if tensors else "",
        f"<h4>{settings_title}</h4>{table(rows)}" if rows else "",
        f"<h4>in other systems</h4>{table(card['differs'].items())}" if card["differs"] else "",
    ]
    factor = f"{card['factor']:g} × " if card.get("factor", 1.0) != 1.0 else ""
    return folded(f"card of {factor}{card['name']}", "".join(body), is_open=is_open)


def _values(*named: Mapping[str, Any]) -> list[Any]:
    return [value for mapping in named for value in mapping.values()]
