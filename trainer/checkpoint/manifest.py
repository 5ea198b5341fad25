"""MANIFEST.json: what it says, and how it is read. It is written last, and holds a hash of itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from ...datums.errors import CheckpointError
from .layouts import Shards

MANIFEST_NAME = "MANIFEST.json"
FORMAT: Literal["lossbook checkpoint"] = "lossbook checkpoint"
#: 1: each group of tensors in a file of its own; 2: some of them in a file of each rank.
FORMAT_VERSIONS = (1, 2)
_LARGEST_MANIFEST = 2**26  # bytes; a list of parameter names takes less than 2**20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


class File(BaseModel):
    """Size in bytes and hash of one file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", strict=True)
    size: int
    sha256: str


class Record(BaseModel):
    """The contents of MANIFEST.json; `manifest` is the caller's part."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: str
    format_version: int
    written_at: float  # seconds since 1970
    versions: dict[str, str | None]
    tensors: list[str]
    shards: dict[str, Shards] = {}  # of those whose tensors lie in a file of each rank; none in format version 1
    files: dict[str, File]
    manifest: dict[str, JsonValue]
    sha256: str  # of all other fields

    def order(self) -> tuple[float, float]:
        """Sort key: the manifest's step where it has one, then the time of writing."""
        step = self.manifest.get("step")
        return (step if isinstance(step, int | float) and not isinstance(step, bool) else -1, self.written_at)


def is_name(name: str) -> bool:
    """Whether a string is one plain path segment on every system, and not hidden."""
    is_plain = isinstance(name, str) and _NAME.fullmatch(name) is not None and not name.endswith(".")
    return is_plain and name.split(".")[0].lower() not in _RESERVED


def check_name(name: str) -> str:
    """The name itself. Raises CheckpointError unless it is one plain path segment on every system."""
    if not is_name(name):
        raise CheckpointError(
            f"{reprlib.repr(name)} cannot be a name in a checkpoint folder. Use 1 to 128 characters out of A-Z, a-z, "
            "0-9, '.', '_' and '-', with a letter or digit first and no '.' last, and none that Windows keeps (con, "
            "nul, com1, ...)"
        )
    return name


def sealed(record: Mapping[str, Any]) -> bytes:
    """The bytes of MANIFEST.json: the record and a hash of it, so that any changed bit is noticed."""
    plain = {key: value for key, value in record.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(plain, allow_nan=False).encode()).hexdigest()
    return json.dumps({**plain, "sha256": digest}, indent=1, allow_nan=False).encode() + b"\n"


def read_record(folder: Path) -> Record:
    """The manifest of a checkpoint. Raises CheckpointError where it is missing, damaged or of another format."""
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        raise CheckpointError(_why_no_manifest(folder))
    with reading(path):
        raw = plain_file(path, _LARGEST_MANIFEST).read_bytes()
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise damaged(path, "is not JSON") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise damaged(path, f"does not begin with the format {FORMAT!r}")
    if fields.get("format_version") not in FORMAT_VERSIONS:
        raise CheckpointError(
            f"{path} has format version {fields.get('format_version')!r}; this lossbook reads "
            f"{' and '.join(map(str, FORMAT_VERSIONS))}. Read it with the version that wrote it: {fields.get('versions')}"
        )
    try:
        if raw != sealed(fields):
            raise damaged(path, "does not match the hash it carries")
        record = Record.model_validate(fields)
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise damaged(path, f"is not a manifest as lossbook writes it ({error})") from None
    if (problem := _problem(record)) is not None:
        raise damaged(path, f"is not a manifest as lossbook writes it ({problem})")
    return record


def _problem(record: Record) -> str | None:
    """What a record says of files of several ranks that cannot be; None where nothing is."""
    if (record.format_version == 2) != bool(record.shards):
        return f"format version {record.format_version}, and shards of {len(record.shards)} groups"
    for group, shards in record.shards.items():
        if group not in record.tensors:
            return f"shards of {group!r}, which it does not list"
        if (problem := shards.problem()) is not None:
            return f"{group}: {problem}"
    return None


def refuse_file(path: Path) -> CheckpointError:
    """The error for a single file given as a checkpoint."""
    if path.suffix.lower() in _PICKLES:
        return CheckpointError(
            f"{path} looks like a pickle, and reading a pickle runs whatever code is in it, so lossbook never does. "
            "Give the folder of a checkpoint that save_state wrote; foreign weights go through safetensors"
        )
    return CheckpointError(f"{path} is a file; a checkpoint is a folder with {MANIFEST_NAME}. Give the folder")


def _why_no_manifest(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no checkpoint {folder}. Look at the names in {folder.parent}"
    with reading(folder):
        pickles = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICKLES)
    if pickles:
        return str(refuse_file(pickles[0]))
    return (
        f"{folder} has no {MANIFEST_NAME}: it was not finished, or lossbook did not write it. Use another checkpoint "
        "(latest_checkpoint finds the newest whole one)"
    )


def damaged(path: Path, how: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {how}. The checkpoint is damaged and nothing of it was used: read another (latest_checkpoint finds the "
        "newest whole one), or restore this file from a copy"
    )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's errors about a path into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Mend the disk or the permissions, or read a copy"
        ) from error


def plain_file(path: Path, largest: int | None = None) -> Path:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "is a link or a device, not a plain file")
    if largest is not None and status.st_size > largest:
        raise damaged(path, f"has {status.st_size} bytes, more than any manifest needs")
    return path
