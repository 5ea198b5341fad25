"""`import tinker` means this package, for code that cannot be changed; also where the official SDK is installed.

`install()` does it in this process. `lossbook tinker` starts a program with `STAND_IN` on its path, which does it there and
in all Python processes that the program starts.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

NAME = "tinker"
#: A folder with a module `tinker`, which calls `install`.
STAND_IN = Path(__file__).parent / "stand_in"
_DOOR = __name__.rpartition(".")[0]
#: Modules of the SDK that have another name here.
_OTHER_NAMES = {"_exceptions": "errors", "resources": "lib.resources"}


def install() -> None:
    """Make `import tinker`, and whatever lies below it, mean this package. Raises ImportError after an import of the SDK."""
    imported, door = sys.modules.get(NAME), importlib.import_module(_DOOR)
    folders = getattr(imported, "__path__", None)  # the stand-in has none
    if imported is not door and folders is not None:
        raise ImportError(
            f"the package at {list(folders)} was imported as {NAME!r} before: install() must come first",
            name=NAME,
        )
    sys.modules[NAME] = door
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder, Loader):
    """Gives a module of this package for each `tinker.MODULE`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for a module that only the SDK has."""
        if not fullname.startswith(f"{NAME}."):
            return None
        if not has(fullname):
            raise ModuleNotFoundError(
                f"{fullname} is not there: `{NAME}` is {_DOOR}, which runs Tinker's calls in this process and has no "
                "client of a server. docs/tinker-surface.md lists what it has",
                name=fullname,
            )
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        """Put the package's own module in place of the empty one."""
        sys.modules[module.__name__] = importlib.import_module(_own(module.__name__))


def has(fullname: str) -> bool:
    """Whether there is a module for the SDK's `tinker.MODULE`."""
    try:
        return importlib.util.find_spec(_own(fullname)) is not None
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(_DOOR):
            raise
        return False


def _own(fullname: str) -> str:
    below = fullname.removeprefix(f"{NAME}.")
    return f"{_DOOR}.{_OTHER_NAMES.get(below, below)}"
