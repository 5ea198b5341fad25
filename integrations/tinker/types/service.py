"""What the service says about itself, its models, sessions and accounts; how a request can fail."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum, auto
from typing import Literal

from pydantic import Field

from .base import BaseModel
from .optimizer import AdamOptimizerConfig, ModelID, OptimizerConfig

RequestID = str


class RequestErrorCategory(StrEnum):
    """Whose mistake a failure is."""

    Unknown = auto()
    Server = auto()
    User = auto()


class SupportedModel(BaseModel):
    """A model that can be asked for by name."""

    model_name: str | None = None
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None


class GetServerCapabilitiesResponse(BaseModel):
    """The models that can be asked for by name."""

    supported_models: list[SupportedModel]


class ModelData(BaseModel):
    """A model's name and architecture."""

    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None


class GetInfoResponse(BaseModel):
    """The model that a training client trains, and how."""

    type: Literal["get_info"] | None = None
    model_data: ModelData
    model_id: ModelID
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool | None = None
    lora_rank: int | None = None
    model_name: str | None = None


class GetSamplerResponse(BaseModel):
    """The model that a sampling client samples from."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


class GetSessionResponse(BaseModel):
    """The runs and samplers of a session."""

    training_run_ids: list[ModelID]
    sampler_ids: list[str]
    user_metadata: dict[str, str] | None = None
    display_name: str | None = None


class ListSessionsResponse(BaseModel):
    """Ids of sessions."""

    sessions: list[str]


class WhoamiResponse(BaseModel):
    """Whose account it is."""

    user_urn: str
    org_urn: str
    email: str | None = None


class AuditLogEntry(BaseModel):
    """What somebody did, in the hosted service's log."""

    timestamp: datetime
    event: str
    event_details: dict[str, object] = Field(default_factory=dict)
    model_id: str | None = None
    tinker_path: str | None = None
    purpose: str | None = None


class AuditLogResponse(BaseModel):
    """Entries of the hosted service's log."""

    entries: list[AuditLogEntry]
