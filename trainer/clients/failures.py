"""The failure of a call: raised again with its own traceback, and reported where nobody looked at it."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
import warnings
import weakref
from typing import NoReturn

from ...datums.errors import UnseenFailureWarning

#: Calls that the report of a failure names; of the others it gives the number.
_NAMED = 3


class Failure:
    """A call's exception, and whether it has been looked at."""

    def __init__(self, label: str, exception: BaseException, *, seen: bool = False) -> None:
        self.label = label
        self.exception = exception
        self.held_back: list[str] = []
        self.seen = seen
        self._note = ""
        self._traceback = exception.__traceback__
        self._process = os.getpid()
        _failures.add(self)

    def raise_it(self, note: str = "") -> NoReturn:
        """Raise the original exception with its original traceback, however often it was raised before.

        The note replaces the one of the time before: ten thousand calls behind a failure make one line, too.
        """
        notes = getattr(self.exception, "__notes__", [])
        if self._note in notes:
            notes.remove(self._note)
        if note:
            self.exception.add_note(note)
        self._note = note
        try:
            raise self.exception.with_traceback(self._traceback)
        finally:
            del self

    def report(self) -> str:
        """The message for a failure that was not looked at, with the traceback."""
        more = f" and {len(self.held_back) - _NAMED} others" if len(self.held_back) > _NAMED else ""
        held_back = f" Held back because of it: {', '.join(self.held_back[:_NAMED])}{more}." if self.held_back else ""
        details = "".join(traceback.format_exception(self.exception))
        return f"{self.label} failed and nobody looked at its future.{held_back} It raised:\n{details}"

    def is_due(self) -> bool:
        """Whether it has yet to be reported, by this process."""
        return not self.seen and self._process == os.getpid()

    def __del__(self) -> None:
        if self.is_due():
            warnings.warn(self.report(), UnseenFailureWarning, stacklevel=1)


_failures: weakref.WeakSet[Failure] = weakref.WeakSet()


@atexit.register
def _report_unseen_failures() -> None:
    """At interpreter exit, after the workers have finished: print the failures that were not looked at."""
    for failure in [failure for failure in _failures if failure.is_due()]:
        failure.seen = True
        if sys.stderr is not None:
            print(f"lossbook: {failure.report()}", file=sys.stderr, flush=True)
