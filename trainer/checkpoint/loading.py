"""The tensors of a checkpoint: which files a rank needs, who verifies them, and the parts that it reads from them."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ...datums.errors import CheckpointError
from ..ranks import Ranks
from ..shards import Part
from .files import verified
from .layouts import Shards, file_name, file_names
from .manifest import MANIFEST_NAME, Record, damaged, reading

Parts = Mapping[str, Part]


def needed_files(record: Record, groups: Sequence[str], parts: Mapping[str, Parts]) -> set[str]:
    """The files that hold what a rank needs: `parts` by group and tensor, and all of each tensor that is not named there."""
    needed = set()
    for group in groups:
        shards = record.shards.get(group)
        for number, name in enumerate(file_names(group, record.shards)):
            if shards is None or _is_needed(shards, number, parts.get(group, {})):
                needed.add(name)
    return needed


def verify(folder: Path, record: Record, needed: Collection[str], others: Collection[str], ranks: Ranks) -> None:
    """Verify each file that a rank needs once on every host, and `others` once. A collective.

    Ranks that see the same file system share the work; a copy on a host of its own is verified there. Raises CheckpointError,
    on every rank.
    """
    with ranks.agree(), reading(folder):
        place = _place(folder)
    answers = ranks.gather((place, sorted(needed)))
    here = [rank for rank, (other, _) in enumerate(answers) if other == place]
    mine = sorted({name for rank in here for name in answers[rank][1]}, key=lambda name: (_size(record, name), name))
    nobodys = sorted(set(others) - {name for _, names in answers for name in names})
    with ranks.agree():
        for name in [*mine[here.index(ranks.rank) :: len(here)], *nobodys[ranks.rank :: ranks.size]]:
            verified(folder, name, record.files)


def load_group(folder: Path, record: Record, group: str, parts: Parts | None) -> dict[str, torch.Tensor]:
    """The tensors of a group, on the CPU: of each in `parts` that part, of others all. The files were verified before.

    Raises CheckpointError where a file does not hold what the manifest says, or a whole tensor has another shape than the
    part that is wanted of it.
    """
    if group in record.shards:
        return _assembled(folder, group, record.shards[group], parts or {})
    path = folder / f"{group}.safetensors"
    with parsing(path):
        if parts is None:
            return load_file(path)
        with safe_open(path, "pt") as file:
            wholes = _tensors_in(file)
            for name, tensor in wholes.items():
                _check_shape(path, name, tuple(tensor.shape), parts)
            return {name: parts[name].of(t).clone() if name in parts else t.clone() for name, t in wholes.items()}


def _assembled(folder: Path, group: str, shards: Shards, parts: Parts) -> dict[str, torch.Tensor]:
    """Tensors put together from the files of several ranks. Memory is taken when all headers are known to be right."""
    wanted: dict[str, tuple[Part, str]] = {}
    needed: list[int] = []
    for number in range(shards.files):
        path = folder / file_name(group, number, shards.files)
        boxes = {name: (part, dtype) for name, part, dtype in shards.parts(number)}
        if not _is_needed(shards, number, parts):
            continue
        needed.append(number)
        with parsing(path), safe_open(path, "pt") as file:
            _check_header(path, _tensors_in(file), boxes)
            for name, (part, _) in boxes.items():
                _check_shape(path, name, part.shape, parts)
    for name, stored in shards.tensors.items():
        shape = tuple(shards.layouts[stored.layout].shape)
        wanted[name] = parts.get(name, Part(shape, (0,) * len(shape), shape)), stored.dtype
    with parsing(folder / MANIFEST_NAME):
        tensors = {name: torch.empty(part.size, dtype=getattr(torch, dtype)) for name, (part, dtype) in wanted.items()}
    for number in needed:
        path = folder / file_name(group, number, shards.files)
        with parsing(path), safe_open(path, "pt") as file:
            for name, part, _ in shards.parts(number):
                both = part.shared(wanted[name][0])
                if both is not None:
                    both.of(tensors[name], wanted[name][0].begin).copy_(both.of(file.get_tensor(name), part.begin))
    return tensors


def _tensors_in(file: Any) -> dict[str, torch.Tensor]:
    """The tensors of an open safetensors file; nothing is read from the disk until one is used."""
    names: list[str] = file.keys()
    return {name: file.get_tensor(name) for name in names}


def _is_needed(shards: Shards, number: int, parts: Parts) -> bool:
    """Whether a file holds something that is wanted. One that should be empty is opened too: it may hold what it should not."""
    boxes = list(shards.parts(number))
    return not boxes or any(name not in parts or part.shared(parts[name]) is not None for name, part, _ in boxes)


def _check_header(path: Path, tensors: Mapping[str, torch.Tensor], boxes: Mapping[str, tuple[Part, str]]) -> None:
    for name in [*boxes, *tensors]:
        if name not in tensors or name not in boxes:
            raise damaged(path, f"{'lacks' if name in boxes else 'holds'} {name!r}, unlike its manifest")
        part, dtype = boxes[name]
        if tuple(tensors[name].shape) != part.size or str(tensors[name].dtype) != f"torch.{dtype}":
            raise damaged(
                path,
                f"holds {name!r} as {list(tensors[name].shape)} {tensors[name].dtype}, but its manifest says "
                f"{list(part.size)} torch.{dtype}",
            )


def _check_shape(path: Path, name: str, shape: tuple[int, ...], parts: Parts) -> None:
    if name in parts and parts[name].shape != shape:
        raise CheckpointError(f"{path}: {name!r} is {list(shape)}, but the model's is {list(parts[name].shape)}")


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Turn what a damaged safetensors file raises into a CheckpointError."""
    try:
        yield
    except (SafetensorError, AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise damaged(path, f"cannot be read as safetensors ({error})") from error


def _place(folder: Path) -> tuple[str, int, int, int]:
    """Equal for processes that read the same file of the same disk on the same machine."""
    status = os.stat(folder / MANIFEST_NAME)
    return platform.node(), uuid.getnode(), status.st_dev, status.st_ino


def _size(record: Record, name: str) -> int:
    return record.files[name].size if name in record.files else 0
