"""Where a run's numbers come from: when, by which command, with which versions, on which machine, from which commit.

provenance.json has one part for the start of a run and one for each resume, and grows with each checkpoint.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pydantic
import torch
from pydantic.dataclasses import dataclass

from ...trainer.checkpoint.files import installed_version
from ..redaction import REDACTED, is_secret_name, redacted
from .names import PROVENANCE
from .records import checked, read_json

if TYPE_CHECKING:
    from ...trainer.responses import ModelInfo

#: Seconds that git may take, in a large working folder.
_GIT_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """One part of a run, from its start or from a resume on.

    date         when it began: ISO 8601, UTC
    command      the command line, without secrets
    versions     of Python and the packages that decide numbers
    platform     the operating system and the processor's architecture
    device       as torch names it, with the name of the hardware
    commit       of the git repository that the working folder is in; None outside one
    dirty        whether files of that repository were changed since the commit
    parameters_trained, parameters   numbers in the trained weights, and in all
    dtype        of products
    rows         that are trained on, or problems; None where nobody said
    steps        that were asked for, those of earlier parts included
    from_step    the checkpoint's step that it continues from; 0 at the start
    to_step      its last checkpoint's step so far
    seconds      until then, evaluations and checkpoints included, loading not
    """

    date: str
    command: str
    versions: dict[str, str]
    platform: str
    device: str
    commit: str | None = None
    dirty: bool = False
    parameters_trained: int
    parameters: int | None = None
    dtype: str
    rows: int | None = None
    steps: int
    from_step: int = 0
    to_step: int = 0
    seconds: float = 0.0


class _File(pydantic.BaseModel):
    parts: list[Provenance]


def provenance(info: ModelInfo, *, rows: int | None, steps: int, device: str | None = None) -> Provenance:
    """What is known as a part of a run begins. device: the hardware's name; by default asked of this process."""
    commit, dirty = _commit()
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command_line(sys.argv),
        versions=_versions(),
        platform=f"{platform.system()} {platform.machine()}",
        device=device or named_device(info.device),
        commit=commit,
        dirty=dirty,
        parameters_trained=info.trainable_parameters,
        parameters=info.parameters,
        dtype=info.dtype,
        rows=rows,
        steps=steps,
    )


def read_provenance(folder: str | Path) -> list[Provenance]:
    """The parts of a run, the first one first; [] where it has none. Raises DataFileError for a damaged file."""
    path = Path(folder) / PROVENANCE
    content = read_json(path)
    return [] if content is None else checked(_File, content, PROVENANCE).parts


def provenance_text(parts: Sequence[Provenance]) -> str:
    """The content of provenance.json."""
    return json.dumps({"parts": [asdict(part) for part in parts]})


def command_line(words: list[str]) -> str:
    """A command that a shell would run in the same way, without secrets; the program without its folder."""
    program, *rest = words or [""]
    named = [
        REDACTED if flag.startswith("--") and is_secret_name(flag[2:].replace("-", "_")) else _flag_redacted(word)
        for flag, word in zip(["", *rest], rest, strict=False)
    ]
    return shlex.join(redacted([Path(program).name or "python", *named]))


def _flag_redacted(word: str) -> str:
    name, equals, _ = word.partition("=")
    secret = equals and name.startswith("--") and is_secret_name(name[2:].replace("-", "_"))
    return f"{name}={REDACTED}" if secret else word


def named_device(device: str) -> str:
    """torch's name of a device with that of the hardware, such as "cuda:0 (NVIDIA H200)"."""
    name = _processor() if device == "cpu" else ""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return f"{device} ({name})" if name else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _versions() -> dict[str, str]:
    from ... import __version__

    packages = {name: installed_version(name) or "" for name in ("torch", "transformers", "peft")}
    return {"lossbook": __version__, "python": platform.python_version(), **packages}


def _commit() -> tuple[str | None, bool]:
    """The commit of the working folder's repository, and whether its files differ from it; git runs no hook for this."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str:
        command = ("git", "-c", "core.fsmonitor=false", *words)
        options = {"capture_output": True, "text": True, "check": True, "timeout": _GIT_SECONDS, "env": environment}
        return subprocess.run(command, **options).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, False
