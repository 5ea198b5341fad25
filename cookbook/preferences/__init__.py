"""Parts of `lossbook train dpo` and `reward`: examples, cached reference logprobs, held-out preferences, wrong answers."""
