"""A family of losses is a folder: whatever its files register can be imported from the folder, without a list."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from .registry import functions_in


def share_losses(namespace: dict[str, Any], *others: str) -> None:
    """Import every file of the folder whose `__init__` calls this, and put its registered losses, and `__all__`, there.

    namespace: globals() of the `__init__`. others: public names that are there already and are not losses.
    """
    package = namespace["__name__"]
    for file in pkgutil.iter_modules(namespace["__path__"]):
        importlib.import_module(f"{package}.{file.name}")
    losses = {function.__name__: function for function in functions_in(package)}
    namespace.update(losses)  # after the imports, since gspo.py holds a loss of the file's name
    namespace["__all__"] = sorted({*losses, *others})
