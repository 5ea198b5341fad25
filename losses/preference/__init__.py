"""Preference losses: which of two responses is the better one, or whether one response is good."""

from .paired import dpo

__all__ = ["dpo"]
