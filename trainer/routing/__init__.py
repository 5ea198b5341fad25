"""Mixtures of experts: which layers choose experts, and how tokens are sent to given ones instead (router replay)."""
