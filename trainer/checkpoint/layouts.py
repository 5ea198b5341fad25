"""How the tensors of a group lie in the files of several ranks: what the manifest says of it, and whether that can be.

A group `weights` of N ranks is in the files `weights-0-of-N.safetensors` to `weights-(N-1)-of-N.safetensors`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ...datums.errors import CheckpointError
from ..ranks import Ranks
from ..shards import Part, check_tiled

Index = Annotated[int, Field(ge=0, le=2**53)]
Ends = Annotated[list[list[Index]], Field(min_length=2, max_length=2)]
Box = tuple[tuple[int, ...], tuple[int, ...]]


class _Plain(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Layout(_Plain):
    """How tensors of one shape are cut: for each file the box it holds, as [first indices, indices after the last], or null."""

    shape: list[Index]
    parts: list[Ends | None]

    def part(self, file: int) -> Part | None:
        """The box that a file holds; None where it holds nothing."""
        box = self.parts[file]
        return None if box is None else Part(tuple(self.shape), tuple(box[0]), tuple(box[1]))


class Stored(_Plain):
    """A tensor of a group: its dtype as torch names it, and which of the group's layouts it has."""

    dtype: str
    layout: Index


class Shards(_Plain):
    """The tensors of a group that lies in several files, and how each is cut."""

    files: Annotated[int, Field(ge=1, le=2**20)]
    layouts: list[Layout]
    tensors: dict[str, Stored]

    def parts(self, file: int) -> Iterator[tuple[str, Part, str]]:
        """(name, box, dtype) of each tensor of which a file holds something."""
        for name, stored in self.tensors.items():
            part = self.layouts[stored.layout].part(file)
            if part is not None:
                yield name, part, stored.dtype

    def problem(self) -> str | None:
        """What cannot be; None where each tensor is in the files whole, each number of it once."""
        reasons = [self._problem_of(layout) for layout in self.layouts]
        for name, stored in self.tensors.items():
            if stored.layout >= len(self.layouts):
                return f"{name!r} has layout {stored.layout} of {len(self.layouts)}"
            if not isinstance(getattr(torch, stored.dtype, None), torch.dtype):
                return f"{name!r} is {stored.dtype!r}, which is no dtype"
            if (reason := reasons[stored.layout]) is not None:
                return f"{name!r} {self.layouts[stored.layout].shape}: {reason}"
        return None

    def _problem_of(self, layout: Layout) -> str | None:
        if len(layout.parts) != self.files:
            return f"{len(layout.parts)} files are named for it, of {self.files}"
        if any(len(ends) != len(layout.shape) for box in layout.parts if box is not None for ends in box):
            return "a part of it has another number of dimensions"
        boxes = [part for file in range(self.files) if (part := layout.part(file)) is not None]
        return check_tiled(tuple(layout.shape), boxes)


def file_name(group: str, file: int = 0, files: int | None = None) -> str:
    """The name of a file of a group; of the only one, unless `files` says how many there are."""
    return f"{group}.safetensors" if files is None else f"{group}-{file}-of-{files}.safetensors"


def file_names(group: str, shards: Mapping[str, Shards]) -> list[str]:
    """The files that a group is in."""
    if group not in shards:
        return [file_name(group)]
    return [file_name(group, file, shards[group].files) for file in range(shards[group].files)]


def gathered_shards(
    ranks: Ranks, tensors: Mapping[str, Mapping[str, Tensor]], parts: Mapping[str, Mapping[str, Part]]
) -> dict[str, Shards]:
    """How the groups of `parts` lie over the ranks, on every rank. A collective.

    Raises CheckpointError, on every rank, where the ranks hold other tensors, or where these do not make up whole ones.
    """
    listed = [
        (group, name, str(tensor.dtype).removeprefix("torch."), parts[group][name])
        for group in parts
        for name, tensor in tensors[group].items()
    ]
    what = hashlib.sha256(repr([(group, name, dtype, part.shape) for group, name, dtype, part in listed]).encode())
    boxes = [(part.begin, part.end) if part.is_stored and not part.is_empty else None for *_, part in listed]
    answers = ranks.gather((what.hexdigest(), boxes))
    if any(digest != answers[0][0] for digest, _ in answers):
        raise CheckpointError(
            "the ranks hold other tensors than each other, so there is no one state to save. Were all calls made on every rank?"
        )
    shards: dict[str, Shards] = {}
    for group in parts:
        cuts = [
            (entry, box) for entry, *box in zip(listed, *(own for _, own in answers), strict=True) if entry[0] == group
        ]
        shards[group] = _shards(cuts, ranks.size)
        if (problem := shards[group].problem()) is not None:
            raise CheckpointError(f"{group} cannot be saved: {problem}")
    return shards


def _shards(cuts: list[tuple[tuple[str, str, str, Part], list[Box | None]]], files: int) -> Shards:
    """The record of one group; tensors that are cut alike share a layout."""
    layouts: dict[tuple[tuple[int, ...], tuple[Box | None, ...]], int] = {}
    tensors = {
        name: Stored(dtype=dtype, layout=layouts.setdefault((part.shape, tuple(boxes)), len(layouts)))
        for (_, name, dtype, part), boxes in cuts
    }
    listed = [
        Layout(shape=list(shape), parts=[None if box is None else [list(ends) for ends in box] for box in boxes])
        for shape, boxes in layouts
    ]
    return Shards(files=files, layouts=listed, tensors=tensors)
