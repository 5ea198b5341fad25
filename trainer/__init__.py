"""The trainer: clients and futures, the engine, models, sampling and checkpoints."""

from .engine import EngineSettings
from .futures import Future
from .reference_client import ReferenceClient
from .sampling_client import SamplingClient
from .service import ServiceClient
from .training_client import TrainingClient

__all__ = ["EngineSettings", "Future", "ReferenceClient", "SamplingClient", "ServiceClient", "TrainingClient"]
