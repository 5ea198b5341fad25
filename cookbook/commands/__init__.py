"""Commands for data, losses and runs."""
