"""`tinker.types`: what goes into calls, and what comes back."""
