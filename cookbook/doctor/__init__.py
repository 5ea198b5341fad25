"""What this machine has, whether it works, and whether sampler and trainer agree."""
