"""Tasks that check their own answers."""
