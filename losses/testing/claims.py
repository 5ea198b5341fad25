"""The earlier name of `lossbook.losses.testing.laws`: laws of a family that a loss promises to keep."""

from .laws import CHECKS

__all__ = ["CHECKS"]
