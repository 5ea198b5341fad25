"""Sampling from what was trained: the weights of a run, its prompts as in training, and a conversation."""
