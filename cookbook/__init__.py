"""Recipes that put datums, losses and the trainer together, and the command line that runs them."""
