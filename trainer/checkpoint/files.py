"""The files of one checkpoint folder: their names, how they are written, listed in MANIFEST.json and verified.

`MANIFEST.json` is written last. It holds every file's size and sha256, and a hash of itself, so that a truncated or changed
file is noticed before it is parsed. Tensors are stored as safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import reprlib
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ...datums import disk
from ...datums.errors import CheckpointError

MANIFEST_NAME = "MANIFEST.json"
FORMAT: Literal["lossbook checkpoint"] = "lossbook checkpoint"
FORMAT_VERSION = 1
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


def check_contents(
    tensors: Mapping[str, Any], manifest: Mapping[str, Any], extra_files: Mapping[str, bytes]
) -> dict[str, Any]:
    """The manifest as plain JSON. Raises CheckpointError for names and values that cannot be stored."""
    names = [
        MANIFEST_NAME,
        *(check_name(f"{check_name(key)}.safetensors") for key in tensors),
        *map(check_name, extra_files),
    ]
    folded = [name.lower() for name in names]
    twice = [name for name in names if folded.count(name.lower()) > 1]
    if twice:
        raise CheckpointError(f"two files of the checkpoint would be called {twice[0]!r}; rename one of them")
    for name, data in extra_files.items():
        if not isinstance(data, bytes):
            raise CheckpointError(f"extra_files[{name!r}] is {type(data).__name__}; it must be bytes")
    try:
        plain = TypeAdapter(dict[str, JsonValue]).validate_python(dict(manifest))
        json.dumps(plain, allow_nan=False)
    except ValidationError as error:
        where = error.errors()[0]
        place = ".".join(str(part) for part in where["loc"])
        raise CheckpointError(
            f"manifest[{place!r}] cannot be stored: {where['msg']}. Use numbers, strings, lists and dictionaries "
            "with string keys; put arrays into `tensors`"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"the manifest cannot be stored: {error}. JSON has no NaN or infinity") from None
    return plain


def fill_folder(
    folder: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    manifest: dict[str, Any],
    extra_files: Mapping[str, bytes],
) -> None:
    """Make the folder and write all files, the manifest last, each flushed to the disk before the next."""
    disk.make_folder(folder)
    for key, group in tensors.items():
        _write_tensors(folder / f"{key}.safetensors", group)
    for name, data in extra_files.items():
        disk.write_new(folder / name, data)
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "written_at": time.time(),
        "versions": {
            name: installed_version(name) for name in ("lossbook", "torch", "transformers", "peft", "safetensors")
        },
        "tensors": list(tensors),
        "files": {path.name: {"size": path.stat().st_size, "sha256": _hash(path)} for path in sorted(folder.iterdir())},
        "manifest": manifest,
    }
    disk.write_new(folder / MANIFEST_NAME, sealed(record))
    disk.sync_folder(folder)


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
        raw = _plain_file(path, _LARGEST_MANIFEST).read_bytes()
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise _damaged(path, "is not JSON") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise _damaged(path, f"does not begin with the format {FORMAT!r}")
    if fields.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {fields.get('format_version')!r}; this lossbook reads {FORMAT_VERSION}. Read it "
            f"with the version that wrote it: {fields.get('versions')}"
        )
    try:
        if raw != sealed(fields):
            raise _damaged(path, "does not match the hash it carries")
        return Record.model_validate(fields)
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise _damaged(path, f"is not a manifest as lossbook writes it ({error})") from None


def verified(folder: Path, name: str, files: Mapping[str, File]) -> Path:
    """The path of a listed file, after checking size and hash against the manifest. Raises CheckpointError."""
    if name not in files:
        raise CheckpointError(f"checkpoint {folder.name!r} has no file {name!r}; it has {', '.join(files) or 'none'}")
    path, file = folder / check_name(name), files[name]
    if not os.path.lexists(path):
        raise _damaged(path, "is missing")
    with reading(path):
        size = _plain_file(path).stat().st_size
        if size != file.size:
            raise _damaged(path, f"has {size} bytes, but {file.size} were written")
        if _hash(path) != file.sha256:
            raise _damaged(path, "has other content than was written: its sha256 differs")
    return path


def load_tensors(folder: Path, key: str, files: Mapping[str, File]) -> dict[str, torch.Tensor]:
    """The tensors of `<key>.safetensors`, on the CPU. Raises CheckpointError."""
    path = verified(folder, f"{key}.safetensors", files)
    try:
        return load_file(path)
    except (SafetensorError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(path, f"cannot be read as safetensors ({error})") from error


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


def _damaged(path: Path, how: str) -> CheckpointError:
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


def _plain_file(path: Path, largest: int | None = None) -> Path:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(path, "is a link or a device, not a plain file")
    if largest is not None and status.st_size > largest:
        raise _damaged(path, f"has {status.st_size} bytes, more than any manifest needs")
    return path


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tensors(path: Path, group: Mapping[str, torch.Tensor]) -> None:
    stored: dict[str, torch.Tensor] = {}
    storages = set()
    try:
        for name, tensor in group.items():
            value = tensor.detach().to("cpu").contiguous()
            storage = value.untyped_storage().data_ptr()
            stored[name] = value.clone() if storage in storages else value  # safetensors refuses shared memory
            storages.add(storage)
        with disk.writing(path):
            save_file(stored, path, metadata={"format": "pt"})
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be stored: {error}. Tensors must be dense and hold data") from error
    # safetensors makes files that only their owner can read; give them the folder's permissions
    os.chmod(path, stat.S_IMODE(path.parent.stat().st_mode) & 0o666)
    disk.sync(path)


def installed_version(name: str) -> str | None:
    """The version of an installed package; None for one that runs from its source files."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
