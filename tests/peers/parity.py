"""What a comparison with another library's own code consists of; `cases_*.py` beside this hold them, `test_parity.py` runs them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .packages import release

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Parity:
    """One loss against one function of an installed release of another library.

    loss, settings: ours. peer: the dotted name of theirs, with its settings. package: the distribution it comes from.
    differences: () -> (of the value, of the gradient): the largest absolute differences, in float64 where the peer allows.
    note: why the difference is what it is, or which of the peer's options were set to make both the same loss.
    """

    loss: str
    peer: str
    package: str
    differences: Callable[[], tuple[float, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-9
    note: str = ""

    @property
    def id(self) -> str:
        """What the test is called."""
        shown = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.loss}({shown}) is {self.package}'s {self.peer}"

    @property
    def version(self) -> str:
        """The installed release."""
        return release(self.package)

    @property
    def row(self) -> tuple[str, ...]:
        """What docs/parity.md says of it before the figures: loss, settings, peer, package, version."""
        shown = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return (f"`{self.loss}`", f"`{shown}`" if shown else "", f"`{self.peer}`", self.package, self.version)


def cases() -> list[Parity]:
    """The comparisons of every cases_*.py beside this."""
    cases: list[Parity] = []
    for path in sorted(HERE.glob("cases_*.py")):
        cases += importlib.import_module(f".{path.stem}", __package__).CASES
    return cases
