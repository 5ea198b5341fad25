"""Checks of the installation, and of whether the sampler and the trainer agree."""
