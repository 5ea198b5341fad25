"""The trainer: clients and futures, the engine, models, sampling and checkpoints."""

from typing import TYPE_CHECKING

if "." not in __name__:
    raise ImportError("trainer/ is a part of the lossbook package: write `import lossbook.trainer`")

from ..datums.lazy import lazy

if TYPE_CHECKING:
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

#: Where each name comes from at its first use; type checkers read the imports above.
_HOMES = {
    ".clients.futures": ("Future",),
    ".clients.reference": ("ReferenceClient",),
    ".clients.sampling": ("SamplingClient",),
    ".clients.service": ("ServiceClient",),
    ".clients.training": ("TrainingClient",),
    ".engine.determinism": ("seed_everything",),
    ".engine.settings": ("EngineSettings",),
}
__getattr__, __dir__ = lazy(__name__, _HOMES, __all__)
