"""What leaves a run: weights as peft and transformers load them, compared first, and a model card."""
