"""What `loss.on_logits` and `loss.on_hidden` ask of the trainer: model outputs of logits, or of hidden states and a head."""
