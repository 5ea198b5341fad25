"""The commands that look at data, losses and runs."""
