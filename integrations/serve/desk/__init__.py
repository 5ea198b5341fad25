"""Sessions, models and samplers, and the turns in which they run."""
