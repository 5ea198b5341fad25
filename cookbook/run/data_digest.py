"""A digest of each data file beside the run, so that a resumed run reads the rows that it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ...datums.errors import DataFileError, RunError
from ...datums.files.sources import hub_name, source_files
from ..redaction import redacted
from .names import DATA_DIGEST
from .records import read_json
from .runs import Run

#: Bytes of a file in memory at once.
_BLOCK = 1 << 20
#: The commit of a data set of which the hub did not say it. It is compared with nothing.
UNKNOWN = "unknown"


def data_digests(sources: Sequence[Any]) -> dict[str, str]:
    """A digest of 16 bytes, as hex digits, for each file of the sources, by its path; of a data set on the hub its commit.

    Raises DataFileError for a file that is not there.
    """
    given = [source for source in sources if source is not None]
    digests = {str(path): _digest(path) for source in given for path in source_files(source)}
    return digests | {
        f"datasets:{name}": _hub_commit(name) for source in given if (name := hub_name(source)) is not None
    }


def check_data(run: Run, digests: Mapping[str, str], *, changed_data: bool = False) -> None:
    """Write the digests beside a new run, when it is made. For a resumed run with a checkpoint, compare them first.

    changed_data: go on with other data, from now on compared with these. Raises RunError, naming the file that changed,
    came or went.
    """
    digests = redacted(digests)
    path = run.path / DATA_DIGEST
    goes_on = run.resumed and path.exists() and run.last_checkpoint()[1] is not None
    began = _read(path) if goes_on else None
    changed = [] if began is None else _changes(began, digests)
    if changed and not changed_data:
        raise RunError(
            f"{'; '.join(changed)} since the run in {run.path} began, by {path.name} in it, so it would go on with other rows, and "
            "not as it would have without the interruption. Restore the data, or accept this with --changed-data"
        )
    if changed:
        print(f"going on with changed data (--changed-data): {'; '.join(changed)}")
    known = {name: digest for name, digest in (began or {}).items() if digests.get(name) == UNKNOWN}
    run.write_when_made(DATA_DIGEST, json.dumps({**digests, **known}, indent=2))


def _changes(began: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What happened to each file that is not as it was, in words."""
    return [
        f"{name} {'is new' if name not in began else 'is gone' if name not in now else 'has changed'}"
        for name in sorted(began.keys() | now.keys())
        if began.get(name) != now.get(name) and UNKNOWN not in (began.get(name), now.get(name))
    ]


def _read(path: Path) -> dict[str, str]:
    try:
        digests = read_json(path)
    except DataFileError as error:
        raise RunError(f"{error}. Delete it to go on without comparing the data") from None
    if not isinstance(digests, dict) or not all(isinstance(digest, str) for digest in digests.values()):
        raise RunError(f"{path} is damaged: it holds no digests. Delete it to go on without comparing the data")
    return digests


def _hub_commit(name: str) -> str:
    """The commit of a data set on the hub, or `UNKNOWN` where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha or UNKNOWN
    except Exception:  # from the network, the hub, or a name that it does not have: reading the rows will say which
        return UNKNOWN


def _digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
