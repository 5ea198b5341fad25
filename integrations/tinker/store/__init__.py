"""Training runs and checkpoints of the Tinker door, as folders."""
