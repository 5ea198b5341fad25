"""A digest of each data file beside the run, so that a resumed run reads the rows that it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...datums.errors import RunError
from ...datums.files.sources import source_files
from .names import DATA_DIGEST
from .runs import Run

#: Bytes of a file in memory at once.
_BLOCK = 1 << 20


def data_digests(sources: Sequence[Any]) -> dict[str, str]:
    """A digest of 16 bytes, as hex digits, for each file of the sources, by its path.

    Sources without files, such as data sets on the hub, have none. Raises DataFileError for a file that is not there.
    """
    return {str(path): _digest(path) for source in sources if source is not None for path in source_files(source)}


def check_data(run: Run, digests: Mapping[str, str], *, changed_data: bool = False) -> None:
    """Write the digests beside a new run, when it is made. For a resumed run with a checkpoint, compare them first.

    changed_data: go on with other data, from now on compared with these. Raises RunError, naming the file that changed,
    came or went.
    """
    path = run.path / DATA_DIGEST
    goes_on = run.resumed and path.exists() and run.last_checkpoint()[1] is not None
    began = _read(path) if goes_on else None
    changed = [] if began is None else _changes(began, digests)
    if changed and not changed_data:
        raise RunError(
            f"{'; '.join(changed)} since the run in {run.path} began, so it would go on with other rows, and not as it would "
            "have without the interruption. Restore the data, or accept this with --changed-data"
        )
    if changed:
        print(f"going on with changed data (--changed-data): {'; '.join(changed)}")
    run.write_when_made(DATA_DIGEST, json.dumps(dict(digests), indent=2))


def _changes(began: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What happened to each file that is not as it was, in words."""
    return [
        f"{name} {'is new' if name not in began else 'is gone' if name not in now else 'has changed'}"
        for name in sorted(began.keys() | now.keys())
        if began.get(name) != now.get(name)
    ]


def _read(path: Path) -> dict[str, str]:
    try:
        digests = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}. Delete it to go on without comparing the data") from None
    if not isinstance(digests, dict):
        raise RunError(f"{path} is damaged: it holds no digests. Delete it to go on without comparing the data")
    return digests


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
