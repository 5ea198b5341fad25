"""What runs: sessions, models and samplers, the queue of requests, and their answers."""

from .desk import Desk as Desk
from .runner import sequence_ids as sequence_ids
