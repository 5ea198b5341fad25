"""Token by token: what a loss made of each token of a sequence."""
