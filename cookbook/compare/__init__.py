"""Which runs there are, their final numbers, and how they differ: means and intervals over seeds."""
