"""Optional packages and users' modules, imported when they are used."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import Any

from .errors import LossbookError, MissingExtraError, did_you_mean


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional package. Raises MissingExtraError with the pip command when it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise  # it is installed, but broken: the traceback says why
        raise MissingExtraError(f"{purpose} needs {package}: pip install 'lossbook[{extra}]'") from None


def require_installed(module: str, extra: str, purpose: str) -> None:
    """Raise MissingExtraError with the pip command unless an optional package is installed; it is not imported."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(f"{purpose} needs {module}: pip install 'lossbook[{extra}]'")


def user_module(path: str) -> ModuleType | None:
    """The module of "module:name", or None if there is no such module. Errors inside the module are raised."""
    name = path.partition(":")[0]
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def named_in(module: ModuleType, path: str, error: type[LossbookError]) -> Any:
    """The object that "module:name" names. Raises `error`, with the likeliest name, if the module lacks it."""
    name = path.partition(":")[2]
    if not hasattr(module, name):
        raise error(f"module {module.__name__!r} has no {name!r}.{did_you_mean(name, dir(module))}")
    return getattr(module, name)
