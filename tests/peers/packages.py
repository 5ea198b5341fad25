"""Libraries that tests run without what those require: their code lies in `.venv/peers`, where `make` puts it.

verl, SkyRL, OpenRLHF and AReaL want other releases of torch and transformers than ours, flash-attn, vLLM or tensordict. Their losses
need none of these: torch and a few names to inherit from or to annotate with. So they are installed without requirements, into a
folder of their own (verl's wheel also brings packages called `tests` and `scripts`), and imported by `imported`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(sys.prefix) / "peers"


def release(package: str) -> str:
    """The installed version of a distribution, in `FOLDER` too, whichever device it was built for."""
    for one in distributions(path=[str(FOLDER)]):
        if one.metadata["Name"].lower().replace("-", "_") == package.lower().replace("-", "_"):
            return one.version
    return version(package).partition("+")[0]


def installed(package: str) -> Path:
    """The folder of one of those libraries. A test that needs one that is not installed is skipped."""
    try:
        release(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: make test installs it in {FOLDER}")
    return FOLDER / package


def imported(module: str, absent: Collection[str] = (), bare: Collection[str] = ()) -> Any:
    """A module of one of those libraries, which a test is skipped without.

    absent: packages that the module imports and does not need here; each is an empty stand-in while it is being imported.
    bare: packages of the library whose own `__init__` is not run, since it imports the whole library.
    """
    package = module.partition(".")[0]
    installed(package)
    finder = _Finder(package, absent, bare)
    with _as_it_was(finder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


class _Anything:
    """What a stand-in has under every name: it is inherited from, called, subscripted or decorates when a library is imported."""

    def __init__(self, *args: object, **keywords: object) -> None:
        pass

    def __class_getitem__(cls, item: object) -> Any:
        return cls

    def __call__(self, decorated: Any) -> Any:
        return decorated


class _StandIn(ModuleType):
    """A module in which every name is a class of its own."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Anything,), {})


class _Finder(MetaPathFinder, Loader):
    """Finds one package in `FOLDER`, without putting that folder on sys.path, and stand-ins."""

    def __init__(self, package: str, absent: Collection[str], bare: Collection[str]) -> None:
        self.package, self.absent, self.bare = package, absent, bare

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        if self.stands_in_for(name):
            return ModuleSpec(name, self, is_package=True)
        theirs = PathFinder.find_spec(name, [str(FOLDER)]) if name == self.package else None
        if name not in self.bare:
            return theirs
        spec = ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = [str(FOLDER.joinpath(*name.split(".")))]
        return spec

    def stands_in_for(self, name: str) -> bool:
        return any(name == one or name.startswith(f"{one}.") for one in self.absent)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name) if spec.name in self.bare else _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _as_it_was(finder: _Finder) -> Iterator[None]:
    """The finder comes first inside; after it, neither stand-ins nor changes of the environment and of logging stay."""
    environment, level = dict(os.environ), logging.root.level
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        os.environ.clear()
        os.environ.update(environment)
        logging.root.setLevel(level)
        for name, module in list(sys.modules.items()):
            if type(module) is _StandIn and finder.stands_in_for(name):
                del sys.modules[name]
