"""Diagnostics: problems that a run's metrics show, and what to do about them."""
