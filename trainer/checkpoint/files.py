"""The files of one checkpoint folder: written, hashed, read back, and verified before they are parsed.

`MANIFEST.json` holds every file's size and sha256, and a hash of itself, so that a truncated or changed file is noticed.
Tensors are stored as safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue, TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from ...datums import disk
from ...datums.errors import CheckpointError
from .layouts import Shards
from .manifest import FORMAT, MANIFEST_NAME, File, check_name, damaged, plain_file, reading, sealed


def check_contents(
    files: Iterable[str], manifest: Mapping[str, Any], extra_files: Mapping[str, bytes]
) -> dict[str, Any]:
    """The manifest as plain JSON. Raises CheckpointError for names and values that cannot be stored.

    files: the names of the files of tensors.
    """
    names = [MANIFEST_NAME, *map(check_name, files), *map(check_name, extra_files)]
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


def write_files(
    folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], extra_files: Mapping[str, bytes]
) -> dict[str, File]:
    """Write tensors by file name, and other files, each flushed to the disk before the next; returns what was written.

    Each is read back: raises CheckpointError where the disk took something else than it was given.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not here, though the first rank made it: ranks on several hosts need a checkpoint folder on a file "
            "system that they share"
        )
    for name, group in tensors.items():
        _write_tensors(folder / name, group)
    for name, data in extra_files.items():
        _write_bytes(folder / name, data)
    return {
        name: File(size=(folder / name).stat().st_size, sha256=_hash(folder / name))
        for name in (*tensors, *extra_files)
    }


def seal_folder(
    folder: Path,
    files: Mapping[str, File],
    groups: Iterable[str],
    shards: Mapping[str, Shards],
    manifest: dict[str, Any],
) -> None:
    """Write the manifest over all files, and flush the folder. Raises CheckpointError where one of the files is not here."""
    for name, file in files.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != file.size:
            raise CheckpointError(
                f"{folder / name} was written by another rank, and is not what the first one sees. Ranks on several hosts "
                "need a checkpoint folder on a file system that they share"
            )
    record = {
        "format": FORMAT,
        "format_version": 2 if shards else 1,
        "written_at": time.time(),
        "versions": {
            name: installed_version(name) for name in ("lossbook", "torch", "transformers", "peft", "safetensors")
        },
        "tensors": list(groups),
        **({"shards": {group: one.model_dump(mode="json") for group, one in shards.items()}} if shards else {}),
        "files": {name: files[name].model_dump() for name in sorted(files)},
        "manifest": manifest,
    }
    _write_bytes(folder / MANIFEST_NAME, sealed(record))
    disk.sync_folder(folder)


def verified(folder: Path, name: str, files: Mapping[str, File]) -> Path:
    """The path of a listed file, after checking size and hash against the manifest. Raises CheckpointError."""
    if name not in files:
        raise CheckpointError(f"checkpoint {folder.name!r} has no file {name!r}; it has {', '.join(files) or 'none'}")
    path, file = folder / check_name(name), files[name]
    if not os.path.lexists(path):
        raise damaged(path, "is missing")
    with reading(path):
        size = plain_file(path).stat().st_size
        if size != file.size:
            raise damaged(path, f"has {size} bytes, but {file.size} were written")
        if _hash(path) != file.sha256:
            raise damaged(path, "has other content than was written: its sha256 differs")
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
    with safe_open(path, "pt") as file:
        if any(not _same_bits(file.get_tensor(name), tensor) for name, tensor in stored.items()):
            raise _misread(path)


def _write_bytes(path: Path, data: bytes) -> None:
    disk.write_new(path, data)
    if path.read_bytes() != data:
        raise _misread(path)


def _same_bits(read: torch.Tensor, written: torch.Tensor) -> bool:
    return torch.equal(read.reshape(-1).view(torch.uint8), written.reshape(-1).view(torch.uint8))


def _misread(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path.name} reads back as something else than was written to {path.parent.parent}: the disk or the file system "
        "is damaged. What was there before is untouched; save to another disk"
    )


def installed_version(name: str) -> str | None:
    """The version of an installed package; None for one that runs from its source files."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
