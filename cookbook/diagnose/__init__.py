"""Diagnostics: what a run's metrics say is wrong, and what to do about it."""
