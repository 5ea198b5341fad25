"""What one call runs: the rows of its outputs, its forwards and backwards, and what is put back after it."""
