"""Advice that knows the run's own settings: what is so already is not proposed again."""

from __future__ import annotations

from typing import Any

from .history import History


def advice(*options: str | None) -> str:
    """The options that there are, as one text, the most likely remedy first. At least one must be there."""
    given = [option for option in options if option]
    text = "; ".join(given)
    return f"{text[0].upper()}{text[1:]}."


def lower_learning_rate(history: History) -> str:
    """The learning rate, with its value if known."""
    return f"lower the learning rate{now(history, 'learning_rate')}"


def now(history: History, name: str) -> str:
    """ " (now 0.1)" for a setting of the run that is known, else ""."""
    value = history.settings.get(name)
    return "" if value is None else f" (now {_shown(value)})"


def more_kl(history: History) -> str:
    """A stronger pull to the reference."""
    coefficient = number(history, "kl_coefficient") or number_of_loss(history, "kl_coefficient")
    return f"raise kl_coefficient (now {coefficient:g})" if coefficient else "set kl_coefficient, such as 0.05"


def wider_clip(history: History) -> str | None:
    """A higher upper bound of the ratio, DAPO's or above it; None where the loss is known and has none."""
    bound = number_of_loss(history, "clip_high")
    if bound is None:
        return None if history.loss_settings() else "raise the upper clip bound"
    return f"raise clip_high from {bound:g}" + (f" to {DAPO_BOUND:g}, as dapo has it" if bound < DAPO_BOUND else "")


#: Yu et al. 2025 (DAPO), arXiv:2503.14476 section 3.1.
DAPO_BOUND = 1.28


def clip_gradients(history: History) -> str | None:
    """A bound of the gradient's norm, where the run has none."""
    return "set grad_clip_norm, such as 1.0" if number(history, "grad_clip_norm") in (None, 0.0) else None


def fewer_updates(history: History) -> str | None:
    """Fewer updates with the same rollouts; None where there is one."""
    counts = {name: number(history, name) for name in ("passes", "minibatches")}
    many = [f"{name} (now {count:g})" for name, count in counts.items() if count is not None and count > 1]
    if many:
        return f"use fewer {' or '.join(many)} over the same rollouts"
    is_known = any(count is not None for count in counts.values())
    return None if is_known else "use fewer passes or minibatches over the same rollouts"


def other_losses(history: History, *names: str) -> str:
    """The losses that are not the run's own, joined by "or"."""
    own = history.loss_names()
    return " or ".join(name for name in names if name not in own)


def number(history: History, name: str) -> float | None:
    """A setting of the run that is a number."""
    return _number(history.settings.get(name))


def number_of_loss(history: History, name: str) -> float | None:
    """A setting of the run's loss that is a number."""
    return _number(history.loss_settings().get(name))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
