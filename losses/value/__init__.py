"""Losses beside the policy's: value functions, entropy, and other terms that are added to a loss."""
