"""What runs: sessions, models and samplers, the queue of requests, and their answers."""

from .desk import Desk, sequence_ids

__all__ = ["Desk", "sequence_ids"]
