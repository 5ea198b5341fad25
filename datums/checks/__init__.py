"""Checks of datums: lengths, token ids, finite numbers, alignment."""
