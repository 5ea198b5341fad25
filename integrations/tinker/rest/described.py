"""Records of the store as Tinker's types."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ....trainer.checkpoint.contents import contents_of
from ....trainer.checkpoint.folder import Checkpoint as LossbookCheckpoint
from ....trainer.checkpoint.manifest import read_record
from ..errors import BadRequestError, refusal
from ..settings import Settings
from ..store import CheckpointRecord, Name, RunRecord, Store, Stored
from ..types import (
    Checkpoint,
    CheckpointType,
    Cursor,
    GetServerCapabilitiesResponse,
    SupportedModel,
    TrainingRun,
    WeightsInfoResponse,
)

T = TypeVar("T")
_TYPES: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def owner() -> str:
    """The URN of whoever runs this process."""
    try:
        return f"lossbook:user:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "lossbook:user:unknown"


def checkpoint(record: CheckpointRecord) -> Checkpoint:
    """A checkpoint, as it is listed."""
    return Checkpoint(
        checkpoint_id=Name(record.run_id, record.kind, record.name).checkpoint_id,
        checkpoint_type=_TYPES[record.kind],
        time=record.time,
        tinker_path=record.path,
        size_bytes=record.size_bytes,
        public=record.public,
        user_metadata=record.user_metadata,
        expires_at=record.expires_at,
    )


def training_run(store: Store, record: RunRecord) -> TrainingRun:
    """A run, with its last checkpoint of each kind."""
    newest = {one.kind: one for one in reversed(store.checkpoints(record.run_id))}
    last, last_sampler = newest.get("weights"), newest.get("sampler_weights")
    return TrainingRun(
        training_run_id=record.run_id,
        base_model=record.base_model,
        model_owner=owner(),
        is_lora=record.is_lora,
        lora_rank=record.lora_rank,
        last_request_time=record.last_request,
        last_checkpoint=None if last is None else checkpoint(last),
        last_sampler_checkpoint=None if last_sampler is None else checkpoint(last_sampler),
        user_metadata=record.user_metadata,
    )


def weights_info(stored: Stored) -> WeightsInfoResponse:
    """What a model must be like to load a checkpoint: by its run, or by what a folder of lossbook's own says."""
    if stored.run is not None:
        of_run = stored.run.model_dump(
            include={"base_model", "is_lora", "lora_rank", "train_unembed", "train_mlp", "train_attn"}
        )
        return WeightsInfoResponse(**of_run)
    record = read_record(stored.folder)
    contents = contents_of(LossbookCheckpoint(stored.folder, record.manifest, {}, record.versions))
    lora = contents.lora
    return WeightsInfoResponse(
        base_model=contents.base_model,
        is_lora=lora is not None,
        lora_rank=None if lora is None else lora.rank,
        train_unembed=None if lora is None else lora.train_unembed,
        train_mlp=None if lora is None else lora.train_mlp,
        train_attn=None if lora is None else lora.train_attn,
    )


def page(items: Sequence[T], limit: int, offset: int) -> tuple[list[T], Cursor]:
    """A part of a list, and which one it is. Raises BadRequestError for a limit below 1 or an offset below 0."""
    if limit < 1 or offset < 0:
        raise refusal(BadRequestError, f"limit={limit}, offset={offset}: a limit is at least 1, an offset at least 0")
    return list(items[offset : offset + limit]), Cursor(offset=offset, limit=limit, total_count=len(items))


def capabilities(settings: Settings) -> GetServerCapabilitiesResponse:
    """The base models that need no download. Any other that lossbook can load is taken too."""
    return GetServerCapabilitiesResponse(
        supported_models=[
            SupportedModel(
                model_name=name, max_context_length=_context_of(settings.model(name)), trainable=True, sampleable=True
            )
            for name in settings.models_at_hand()
        ]
    )


def _context_of(model: str) -> int | None:
    """Tokens that a model's configuration allows; None where it does not say."""
    try:
        config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
        length = config.get("text_config", config).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError):
        return None
    return length if isinstance(length, int) else None
