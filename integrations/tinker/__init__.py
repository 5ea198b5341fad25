"""Tinker's API in one process: `import lossbook.integrations.tinker as tinker`, without a server or an account.

Its names, arguments and defaults are those of the `tinker` package, release 0.38.0, which is not needed and never imported.
docs/tinker-surface.md has every name: what is the same, what differs and why, what is refused.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, TypedDict

from . import auth, types
from .errors import (
    APIConnectionError,
    APIError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BillingError,
    ConflictError,
    ExperimentalWarning,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestFailedError,
    TinkerError,
    UnprocessableEntityError,
)
from .futures import APIFuture
from .lib import resources as resources
from .types import (
    AdamOptimizerConfig,
    AdamParams,
    Checkpoint,
    CheckpointType,
    Datum,
    DimuonOptimizerConfig,
    DimuonParams,
    DmelChunk,
    EncodedTextChunk,
    ForwardBackwardOutput,
    LoraConfig,
    ModelID,
    ModelInput,
    ModelInputChunk,
    OptimParams,
    OptimStepRequest,
    OptimStepResponse,
    ParsedCheckpointTinkerPath,
    PromptProvenanceSpan,
    SampledProvenanceSpan,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SamplingParams,
    StopReason,
    TensorData,
    TensorDtype,
    TrainingRun,
)

if TYPE_CHECKING:
    from httpx2 import Timeout

    from .lib.public_interfaces import (
        AdminClient,
        BackcompatSamplingClientFuture,
        BackcompatTrainingClientFuture,
        LossHandle,
        PerDatumLossFn,
        RestClient,
        SamplingClient,
        ServiceClient,
        TrainingClient,
    )
    from .settings import configure as configure

__title__ = "tinker"
#: The release of the `tinker` package whose surface this is.
__version__ = "0.38.0"

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIFuture",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AdamOptimizerConfig",
    "AdamParams",
    "AdminClient",
    "AuthenticationError",
    "BackcompatSamplingClientFuture",
    "BackcompatTrainingClientFuture",
    "BadRequestError",
    "BillingError",
    "Checkpoint",
    "CheckpointType",
    "ConflictError",
    "Datum",
    "DimuonOptimizerConfig",
    "DimuonParams",
    "DmelChunk",
    "EncodedTextChunk",
    "ExperimentalWarning",
    "ForwardBackwardOutput",
    "InternalServerError",
    "LoraConfig",
    "LossHandle",
    "ModelID",
    "ModelInput",
    "ModelInputChunk",
    "NotFoundError",
    "OptimParams",
    "OptimStepRequest",
    "OptimStepResponse",
    "ParsedCheckpointTinkerPath",
    "PerDatumLossFn",
    "PermissionDeniedError",
    "PromptProvenanceSpan",
    "RateLimitError",
    "RequestFailedError",
    "RequestOptions",
    "RestClient",
    "SampleRequest",
    "SampleResponse",
    "SampledProvenanceSpan",
    "SampledSequence",
    "SamplingClient",
    "SamplingParams",
    "ServiceClient",
    "StopReason",
    "TensorData",
    "TensorDtype",
    "Timeout",
    "TinkerError",
    "TrainingClient",
    "TrainingRun",
    "UnprocessableEntityError",
    "__title__",
    "__version__",
    "auth",
    "types",
]


class RequestOptions(TypedDict, total=False):
    """How a request is sent. Nothing is sent here, so no call takes it."""

    headers: dict[str, str]
    max_retries: int
    timeout: float | Timeout | None
    params: dict[str, object]
    extra_json: dict[str, object]
    idempotency_key: str
    follow_redirects: bool


def __getattr__(name: str) -> Any:
    if name == "Timeout":
        return importlib.import_module("httpx2").Timeout
    if name == "configure":
        from .settings import configure

        return configure
    if name in __all__:  # the clients, which take long to import
        from .lib import public_interfaces

        return globals().setdefault(name, getattr(public_interfaces, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}: docs/tinker-surface.md says what is there")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
