"""One forward and one backward for any loss."""
