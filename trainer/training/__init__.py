"""A model in training or frozen, whose calls run when they are made: the side of a client that has no futures."""
