"""Custom losses that came as graphs: read, checked and run over a short table of operations."""
