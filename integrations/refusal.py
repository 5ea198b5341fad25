"""Which errors of a service of Tinker's protocol say that it has no such call, rather than that something went wrong."""

from __future__ import annotations

from typing import Any

from ..datums.errors import LossbookError

#: Statuses by which a server says so.
_NOT_HERE = (400, 403, 404, 405, 422, 501)


def is_refusal(error: Any) -> bool:
    """Whether an error says that the caller asked for something that is not there."""
    if (status := getattr(error, "status_code", None)) is not None:
        return status in _NOT_HERE
    if (category := getattr(error, "category", None)) is not None:
        return "user" in str(getattr(category, "value", category)).lower()
    return isinstance(error, LossbookError | ValueError | TypeError | NotImplementedError) and not isinstance(
        error, TimeoutError
    )
