"""The conformance kits: `check_model` for models, `check_loss` and `check_advantages` for losses, `strategies` for your tests.

from lossbook.testing import check_model

print(check_model("tiny"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses.testing import check_advantages, check_loss, strategies
    from .trainer.conformance import check_model

__all__ = ["check_advantages", "check_loss", "check_model", "strategies"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = ".trainer.conformance" if name == "check_model" else ".losses.testing"
    return getattr(importlib.import_module(home, __package__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
