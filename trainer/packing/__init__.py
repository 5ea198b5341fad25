"""Micro-batches: sequences packed into one row without padding, and attention over them."""
