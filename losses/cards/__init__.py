"""What is shown about a loss: its card, its curve, and comparisons."""
