"""What the kit's strategies draw."""
