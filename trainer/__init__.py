"""The trainer: clients and futures, the engine, models, sampling and checkpoints."""

if "." not in __name__:
    raise ImportError("trainer/ is a part of the lossbook package: write `import lossbook.trainer`")

from .clients.futures import Future
from .clients.reference import ReferenceClient
from .clients.sampling import SamplingClient
from .clients.service import ServiceClient
from .clients.training import TrainingClient
from .engine.determinism import seed_everything
from .engine.settings import EngineSettings

__all__ = [
    "EngineSettings",
    "Future",
    "ReferenceClient",
    "SamplingClient",
    "ServiceClient",
    "TrainingClient",
    "seed_everything",
]
