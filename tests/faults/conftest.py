"""What these tests share with the trainer's."""

from ..trainer.conftest import ranks

__all__ = ["ranks"]
