"""Numbers as rows, settings and metrics may hold them."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is an int or a float within a float's range: no NaN, no infinity, no 10**400, no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
