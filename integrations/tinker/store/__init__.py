"""Training runs and checkpoints of the Tinker door, as folders: names, records, times of life; no model is loaded here."""

from .names import KINDS, Kind, Name, parsed
from .places import RECORD
from .records import CheckpointRecord, RunRecord, SamplerRecord, SessionRecord, Stored
from .store import Store

__all__ = [
    "KINDS",
    "RECORD",
    "CheckpointRecord",
    "Kind",
    "Name",
    "RunRecord",
    "SamplerRecord",
    "SessionRecord",
    "Store",
    "Stored",
    "parsed",
]
