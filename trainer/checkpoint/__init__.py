"""Checkpoints: files, folders, and a training client's whole state."""
