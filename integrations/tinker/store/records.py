"""What is written about sessions, training runs and checkpoints: JSON files that carry a hash of themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from ....datums import disk
from ....datums.errors import CheckpointError, CheckpointNotFoundError
from ....trainer.checkpoint.manifest import damaged, plain_file, reading, sealed
from .names import Kind, Name

#: The hosted service's bounds of a checkpoint's life: an hour, and ten years.
LEAST_TTL, LARGEST_TTL = 3600, 10 * 365 * 24 * 3600
_LARGEST_RECORD = 2**24  # bytes
R = TypeVar("R", bound="Record")
Metadata = dict[str, str]


class Record(BaseModel):
    """Base of the records: no key but its own, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    @classmethod
    def of(cls, **fields: object) -> Self:
        """A record of these fields. Raises CheckpointError naming the first that is wrong."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def changed(self, **fields: object) -> Self:
        """The record with other values of some fields."""
        return self.of(**{**dict(self), **fields})


class Finish(Record):
    """How a session ended, by the word of its client."""

    reason: Literal["success", "errored", "interrupted"]
    detail: str | None = None


class SessionRecord(Record):
    """One service client, from its making on."""

    session_id: str
    created: AwareDatetime
    user_metadata: Metadata | None = None
    project_id: str | None = None
    display_name: str | None = None
    finish: Finish | None = None


class RunRecord(Record):
    """One model in training, or a copy of one's checkpoint. `last_request` is exact to about half a minute."""

    run_id: str
    session_id: str
    created: AwareDatetime
    last_request: AwareDatetime
    base_model: Annotated[str, Field(min_length=1)]
    is_lora: bool
    lora_rank: Annotated[int, Field(ge=1)] | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
    train_unembed: bool | None = None
    user_metadata: Metadata | None = None
    copy_of: str | None = None


class CheckpointRecord(Record):
    """One checkpoint; it lies in the checkpoint's folder, and comes to its place with it."""

    run_id: str
    kind: Kind
    name: str
    time: AwareDatetime
    size_bytes: Annotated[int, Field(ge=0)]
    expires_at: AwareDatetime | None = None
    public: bool = False
    user_metadata: Metadata | None = None

    @property
    def path(self) -> str:
        """Its `tinker://` path."""
        return str(Name(self.run_id, self.kind, self.name))

    def is_expired(self, now: datetime) -> bool:
        """Whether its life is over."""
        return self.expires_at is not None and self.expires_at <= now


class SamplerRecord(Record):
    """One sampling client."""

    sampler_id: str
    base_model: str
    model_path: str | None = None


@dataclass(frozen=True)
class Stored:
    """A checkpoint as it lies on the disk. A folder that no store wrote has neither run nor record.

    path: what it was asked for by, a `tinker://` path or a folder. folder: give it to lossbook's clients.
    """

    path: str
    folder: Path
    kind: Kind
    name: str
    run: RunRecord | None = None
    record: CheckpointRecord | None = None


def expiry(ttl_seconds: int | None, now: datetime) -> datetime | None:
    """When a life of `ttl_seconds` is over; None for ever. Raises CheckpointError out of the hosted service's bounds."""
    if ttl_seconds is None:
        return None
    if isinstance(ttl_seconds, bool) or not isinstance(ttl_seconds, int) or not LEAST_TTL <= ttl_seconds <= LARGEST_TTL:
        raise CheckpointError(
            f"ttl_seconds={ttl_seconds!r} is not from {LEAST_TTL} (an hour) to {LARGEST_TTL} (ten years); None keeps a "
            "checkpoint for ever, and delete_checkpoint_from_tinker_path removes it at once"
        )
    return now + timedelta(seconds=ttl_seconds)


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def as_bytes(record: Record) -> bytes:
    """A record as it is written, with a hash of itself."""
    return sealed(record.model_dump(mode="json"))


def write(path: Path, record: Record) -> None:
    """Write a record, in place of one that is there. Raises CheckpointError where the disk does not take it."""
    try:
        disk.write_file(path, as_bytes(record))
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}. What was there before is untouched") from error


def write_folder(folder: Path, name: str, record: Record) -> None:
    """Make a folder with a record in it; whole or not at all. Raises CheckpointError where the disk does not take it."""
    try:
        with disk.new_folder(folder) as scratch:
            disk.write_new(scratch / name, as_bytes(record))
    except OSError as error:
        raise CheckpointError(f"{folder} could not be made: {error}. Choose another root for checkpoints") from error


def read(path: Path, kind: type[R]) -> R:
    """The record in a file. Raises CheckpointNotFoundError where there is none, CheckpointError where it is damaged."""
    try:
        with reading(path):
            raw = plain_file(path, _LARGEST_RECORD).read_bytes()
    except CheckpointError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise CheckpointNotFoundError(f"there is no {path}") from None
        raise
    try:
        fields = json.loads(raw)
        if raw != sealed(fields):
            raise damaged(path, "does not match the hash it carries")
        return kind.model_validate_json(json.dumps({key: value for key, value in fields.items() if key != "sha256"}))
    except (ValueError, AttributeError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise damaged(path, "is not a record as lossbook writes it") from error
