"""The walls around a worker, each raised by itself, with its own rights, for the rest of its life.

rlimits     memory, processor time, open files; no file may grow; no core dump
Landlock    (Linux 5.13) reads below the given folders only, and not the memory of other processes; no writing
seccomp     (Linux, x86-64 and aarch64) only computing, and opening for reading: `seccomp.py`
audit hook  Python's own functions that do any of this raise PermissionError; all there is on other systems

Besides, it has no open files but the two pipes to the server, an environment without the user's variables, and no capabilities,
so that it holds for root as well. See landlock(7), capabilities(7), setrlimit(2), PEP 578.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .seccomp import forbid_other_calls

#: Open files at most, of which a worker has few.
MOST_FILES = 64
#: What Python itself and the system's libraries read beside its own folders.
SYSTEM = ("/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom")
#: Rights of Landlock to a file and a folder, and how many rights each version knows.
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
#: Numbers of capset(2), and of prctl(2)'s PR_SET_PDEATHSIG and PR_SET_NO_NEW_PRIVS.
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES_VERSION_3 = 0x20080522
_SET_DEATH_SIGNAL, _SET_NO_NEW_PRIVS = 1, 38
#: Beginnings of the names of Python's audit events that a verifier has no use for. "open" is looked at.
REFUSED = (
    *(
        "socket.",
        "subprocess.",
        "os.exec",
        "os.fork",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "os.startfile",
        "pty.",
    ),
    *("os.kill", "signal.pthread_kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
    *("os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "shutil.", "tempfile."),
    *("resource.setrlimit", "resource.prlimit"),
)
#: Refused as well where the kernel has no such walls: machine code goes round this hook.
MACHINE_CODE = ("ctypes.dlopen", "ctypes.dlsym", "ctypes.call_function")
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC


def readable_folders(more: Sequence[str]) -> list[str]:
    """The folders that Python, its packages and the system's libraries lie in, and `more`."""
    python = (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *sys.path, *more)
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    return sorted({os.path.realpath(path) for path in (*python, *libraries, *SYSTEM) if path and os.path.exists(path)})


def raise_walls(folders: Sequence[str], seconds: float, memory: int, parent: int) -> list[str]:
    """Raise all walls; returns a word on each that this system does not have.

    folders  that may be read      seconds  of processor time      memory  bytes of address space
    parent   the process without which this one is ended
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _limit(seconds, memory)
    if sys.platform != "linux":
        _listen_to_python((*REFUSED, *MACHINE_CODE))
        return [f"{platform.system()} has neither Landlock nor seccomp"]
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities(libc)
    files = _restrict_files(libc, folders)
    calls = _named("seccomp", forbid_other_calls(libc))
    missing = [word for word in (files, calls) if word]
    _listen_to_python((*REFUSED, *MACHINE_CODE) if missing else REFUSED)
    return missing


def _named(wall: str, reason: str | None) -> str:
    return f"{wall} is not available ({reason})" if reason else ""


def _limit(seconds: float, memory: int) -> None:
    cpu = math.ceil(seconds) + 1
    limits = {"AS": memory, "CPU": cpu, "NOFILE": MOST_FILES, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of memory; a lower one may be set already
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up what root may do beyond an ordinary user."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if platform.machine() in _CAPSET:
        libc.syscall(_CAPSET[platform.machine()], header, none)


def _restrict_files(libc: ctypes.CDLL, folders: Sequence[str]) -> str:
    """Landlock: read below `folders`, and nothing else. Returns "", or that this is not available."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if version < 1:
        return _named("Landlock", os.strerror(ctypes.get_errno()))
    files = (1 << _RIGHTS.get(version, 16)) - 1
    network = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0  # no abstract sockets of others, no signals to others
    attributes = (ctypes.c_uint64 * 3)(files, network, scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    for folder in folders:
        opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        rights = _READ_FILE | (_READ_FOLDER if Path(folder).is_dir() else 0)
        rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + opened.to_bytes(4, "little"), 12)
        libc.syscall(_ADD_RULE, ruleset, 1, rule, ctypes.c_uint32(0))
        os.close(opened)
    if ruleset < 0 or libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)):
        return _named("Landlock", os.strerror(ctypes.get_errno()))
    os.close(ruleset)
    return ""


def _listen_to_python(refused: tuple[str, ...]) -> None:
    """Refuse events of Python that begin like this, and opening to write."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(refused) or (event == "open" and arguments[2] & _WRITING):
            raise PermissionError(f"a confined process may not do this: {event}")

    sys.addaudithook(refuse)
