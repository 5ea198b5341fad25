"""Norms, rotations and gated MLPs of a model in fused kernels."""
