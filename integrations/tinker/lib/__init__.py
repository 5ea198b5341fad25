"""`tinker.lib`: the modules of it that public code imports from."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    if name == "public_interfaces":  # there after `import tinker`, as in the SDK, but imported at its first use
        return importlib.import_module(".public_interfaces", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
