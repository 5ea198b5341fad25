"""`tinker.auth`: in one process there is nobody to show a key to."""

from __future__ import annotations

__all__ = ["get_tinker_token", "raise_if_tinker_not_accessible", "tinker_has_credentials"]


def get_tinker_token() -> None:
    """None: no key is configured, because none is needed."""


def tinker_has_credentials() -> bool:
    """True: every call is allowed."""
    return True


def raise_if_tinker_not_accessible() -> None:
    """Nothing to raise: the service is this process."""
