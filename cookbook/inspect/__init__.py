"""Token by token: the values and gradients of a loss, recorded during a run or shown for a data file."""
