"""A loss with its settings, alone or in a mixture, and its evaluation on data."""
