"""Packages whose names are imported at their first use, so that `import lossbook` and the help of commands need no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: What one part hands to a part below it, by name; each is loaded when it is first used.
_handed: dict[str, Callable[[], Any]] = {}


def lazy(
    package: str, homes: Mapping[str, Iterable[str]], public: Iterable[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package (PEP 562).

    homes: the names that each module below the package offers, by the module's relative name. The folders and files directly
    below the package on the way there are attributes too. public: the package's `__all__`.
    """
    modules = {home.split(".")[1]: f".{home.split('.')[1]}" for home in homes}
    modules |= {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        home = modules.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        module = importlib.import_module(home, package)
        value = module if home == f".{name}" else getattr(module, name)
        return vars(sys.modules[package]).setdefault(name, value)

    def listed() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return get, listed


def alias(name: str, target: str) -> None:
    """Let `import name` mean the module `target`, which is imported then."""
    sys.meta_path.append(_Alias(name, target))


class _Alias(MetaPathFinder, Loader):
    def __init__(self, name: str, target: str) -> None:
        self.name, self.target = name, target

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[self.name] = importlib.import_module(self.target)


def hand_over(name: str, load: Callable[[], Any]) -> None:
    """Give a part below what it needs of a part above it, to be loaded when it is first used."""
    _handed[name] = load


def handed(name: str) -> Any:
    """What was handed over under a name. Raises KeyError where nothing was."""
    return _handed[name]()
