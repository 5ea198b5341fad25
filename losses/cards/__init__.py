"""A loss shown to people: its card, its curve, and comparisons with other losses."""
