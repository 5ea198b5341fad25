"""Embedding losses: one pooled vector a datum."""

from .in_batch import info_nce

__all__ = ["info_nce"]
