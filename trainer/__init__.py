"""The trainer: clients and futures, the engine, models, sampling and checkpoints."""

from .clients.futures import Future
from .clients.reference import ReferenceClient
from .clients.sampling import SamplingClient
from .clients.service import ServiceClient
from .clients.training import TrainingClient
from .engine.engine import EngineSettings

__all__ = ["EngineSettings", "Future", "ReferenceClient", "SamplingClient", "ServiceClient", "TrainingClient"]
