"""A call's data as a loss reads it: packed inputs, model outputs, and how tokens lie in datums."""
