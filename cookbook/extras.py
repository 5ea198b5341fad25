"""Optional packages, imported where they are used."""

from ..datums.extras import require, require_installed

__all__ = ["require", "require_installed"]
