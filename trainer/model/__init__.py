"""Models: loading, LoRA, value heads, snapshots and export."""
