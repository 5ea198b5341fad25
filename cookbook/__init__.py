"""Recipes built from datums, losses and the trainer, and the command line that runs them."""
