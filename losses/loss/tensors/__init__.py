"""A loss on plain tensors, padded or packed: `loss.on_tensors`, and what the model's outputs are made of before it."""
