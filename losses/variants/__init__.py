"""Losses made from other losses: rollout corrections, off-policy masks, presets of other systems."""
