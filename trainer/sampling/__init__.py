"""Sampling: token choice, KV caches, and prefix sharing."""
