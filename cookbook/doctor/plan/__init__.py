"""What training a model on some number of GPUs takes: memory of a rank, communication, efficiency."""
