"""Supervised losses: make given tokens likelier."""

from .likelihood import cross_entropy

__all__ = ["cross_entropy"]
