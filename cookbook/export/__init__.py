"""Exporting a run: weights that peft or transformers loads, a check of them, and a model card."""
