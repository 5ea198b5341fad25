"""Names: of sessions, training runs and checkpoints, as code writes them and as folders carry them."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal, get_args

from ....datums.errors import CheckpointError, CheckpointNotFoundError, did_you_mean
from ....trainer.checkpoint.folder import check_name

#: What a checkpoint is for: training on (`save_state`), sampling (`save_weights_for_sampler`), other programs
#: (`save_weights_external`). Each kind has names of its own.
Kind = Literal["weights", "sampler_weights", "external_weights"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SCHEME = "tinker://"
_SESSION = re.compile(r"session-[0-9a-f]{32}")
_RUN = re.compile(r"(session-[0-9a-f]{32}):train:(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Name:
    """`tinker://RUN/KIND/NAME`, in its parts."""

    run_id: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.run_id}/{self.checkpoint_id}"

    @property
    def checkpoint_id(self) -> str:
        """`KIND/NAME`, which names the checkpoint within its run."""
        return f"{self.kind}/{self.name}"


def parsed(path: str) -> Name:
    """The parts of a `tinker://` path. Raises CheckpointError where it is no such path."""
    parts = path.removeprefix(SCHEME).split("/")
    if not path.startswith(SCHEME) or len(parts) != 3:
        raise CheckpointError(f"{path!r} is no checkpoint's path, which is tinker://RUN/KIND/NAME")
    run_id, kind, name = parts
    return Name(run_id, kind_of(kind, path), check_name(name))


def kind_of(text: str, path: str) -> Kind:
    """A kind by its name in `path`. Raises CheckpointError where there is none of that name."""
    for kind in KINDS:
        if kind == text:
            return kind
    raise CheckpointError(f"{path!r}: {text!r} is none of {', '.join(KINDS)}.{did_you_mean(text, KINDS)}")


def new_session_id() -> str:
    """128 random bits, so that nobody guesses the id of a session, nor those of its runs."""
    return f"session-{secrets.token_hex(16)}"


def run_id_of(session_id: str, number: int) -> str:
    """The id of a session's run; runs are numbered from 0."""
    return f"{session_id}:train:{number}"


def session_folder(session_id: str) -> str:
    """The name of a session's folder. Raises CheckpointNotFoundError for what cannot be a session's id."""
    if _SESSION.fullmatch(session_id) is None:
        raise CheckpointNotFoundError(f"there is no session {session_id!r}: ids are session-, then 32 digits of 0-9a-f")
    return session_id


def run_folder(run_id: str) -> str:
    """The name of a run's folder: its id, with dots for the colons. Raises CheckpointNotFoundError for what cannot be an id."""
    if _RUN.fullmatch(run_id) is None:
        raise CheckpointNotFoundError(
            f"there is no training run {run_id!r}: ids are SESSION:train:NUMBER, as a training client's `model_id` says"
        )
    return run_id.replace(":", ".")


def run_id_in(folder: str) -> str | None:
    """The id of the run whose folder has this name; None where it is no run's."""
    run_id = folder.replace(".", ":")
    return run_id if _RUN.fullmatch(run_id) else None


def session_of(run_id: str) -> str:
    """The session that a run's id begins with."""
    return run_id.partition(":")[0]


def number_of(run_id: str) -> int:
    """A run's number in its session."""
    return int(run_id.rpartition(":")[2])
