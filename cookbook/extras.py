"""Optional packages, imported where they are used."""

from ..datums.extras import require

__all__ = ["require"]
