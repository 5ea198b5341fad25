"""Checks of datums: aligned lengths, known ids, finite numbers, and labels where they are expected."""
