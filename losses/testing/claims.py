"""The former name of `lossbook.losses.testing.laws`."""

from .laws import CHECKS

__all__ = ["CHECKS"]
