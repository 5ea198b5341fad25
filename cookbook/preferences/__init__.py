"""What `train dpo` and `train reward` need: units of data, reference logprobs, held-out preferences, wrong answers."""
