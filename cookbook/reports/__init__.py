"""A run as a page: headline numbers, curves, what looks wrong and what to do about it, the loss, and the loss microscope."""
