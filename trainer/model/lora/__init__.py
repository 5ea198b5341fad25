"""LoRA: adapters of chosen weights, their files, and their export."""
