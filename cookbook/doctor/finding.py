"""One line of the doctor's report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "warn", "FAIL"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    state    ok; note: an optional part is missing; warn: it works, but deserves a look; FAIL: a required check failed
    """

    state: State
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.state:<5} {self.subject:<22} {self.text}"
