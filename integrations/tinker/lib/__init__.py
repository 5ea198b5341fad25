"""`tinker.lib`: the modules of it that public code imports from."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "public_interfaces":  # there after `import tinker`, as in the SDK, but imported at its first use
        from . import public_interfaces

        return public_interfaces
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
