"""`key_kind` and `KeyKind` by their older module; they are in `inputs`."""

from .inputs import KeyKind, key_kind

__all__ = ["KeyKind", "key_kind"]
