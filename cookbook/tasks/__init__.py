"""Tasks that check their own answers, and evaluation on their held-out questions."""
