"""Tracing a loss to a torch.fx graph of one datum."""
