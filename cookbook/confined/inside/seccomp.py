"""The system calls that are left to a worker: those that compute, and open and read files. Linux refuses every other with EPERM.

So there is no process, thread, socket, signal to others, changed file or raised limit, whatever the user's rights. The kernel
checks numbers and flags, not names of files; those are Landlock's (`walls.py`). See seccomp(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

#: Numbers of system calls on x86-64; None: it has no such call. Beside them on aarch64.
_READ = {"read": (0, 63), "readv": (19, 65), "pread64": (17, 67), "lseek": (8, 62), "getdents64": (217, 61)}
_WRITE = {"write": (1, 64), "writev": (20, 66), "pipe2": (293, 59), "pipe": (22, None)}  # to descriptors that are open
_FILES = {
    **{"close": (3, 57), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24)},
    **{"stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291)},
    **{"access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "getcwd": (79, 17)},
    **{"readlink": (89, None), "readlinkat": (267, 78)},
}
_MEMORY = {
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216)},
    **{"madvise": (28, 233), "membarrier": (324, 283)},
}
_WAIT = {
    **{"poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72)},
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "futex": (202, 98), "sched_yield": (24, 124)},
    **{"restart_syscall": (219, 128), "set_robust_list": (273, 99), "rseq": (334, 293)},
}
_CLOCKS = {
    **{"time": (201, None), "gettimeofday": (96, 169), "clock_gettime": (228, 113), "clock_getres": (229, 114)},
    **{"times": (100, 153), "getrusage": (98, 165)},
}
_ITSELF = {
    **{"getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "uname": (63, 160), "sysinfo": (99, 179)},
    **{"getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177)},
    **{"getrlimit": (97, 163), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getrandom": (318, 278)},
    **{"alarm": (37, None), "setitimer": (38, 103)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"exit": (60, 93), "exit_group": (231, 94)},
}
ALLOWED = {**_READ, **_WRITE, **_FILES, **_MEMORY, **_WAIT, **_CLOCKS, **_ITSELF}
#: Calls of which a part is allowed: opening for reading; commands of fcntl that send no signals; reading limits.
OPEN, OPENAT, FCNTL, PRLIMIT = (2, None), (257, 56), (72, 25), (302, 261)
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
#: The machines whose numbers these are: the column, and the kernel's name for the machine in a filter.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Instructions of a filter: load a word of the call, jump if equal or if bits are set, return. See linux/bpf_common.h.
_LOAD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
_SET_NO_NEW_PRIVS, _SET_SECCOMP, _MODE_FILTER = 38, 22, 2

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def forbid_other_calls(libc: ctypes.CDLL) -> str | None:
    """Leave this process the calls above, for ever. Returns why that was not possible, or None."""
    if platform.machine() not in MACHINES:
        return f"no table of system calls of {platform.machine()}"
    program = filter_program(platform.machine())
    packed = b"".join(
        code.to_bytes(2, "little") + bytes((yes, no)) + value.to_bytes(4, "little") for code, yes, no, value in program
    )
    buffer = ctypes.create_string_buffer(packed, len(packed))
    whole = _Program(len(program), ctypes.addressof(buffer))
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_SET_SECCOMP, _MODE_FILTER, ctypes.byref(whole), 0, 0):
        return os.strerror(ctypes.get_errno())
    return None


def filter_program(machine: str) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, value)."""
    column, architecture = MACHINES[machine]
    program: list[Instruction] = [
        *((_LOAD, 0, 0, 4), (_IF_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)),
        (_LOAD, 0, 0, 0),
    ]
    for numbers in ALLOWED.values():
        program += _only(numbers[column], [(_RETURN, 0, 0, _ALLOW)])
    for numbers, argument in ((OPEN, 1), (OPENAT, 2)):
        reading: list[Instruction] = [(_IF_SET, 1, 0, _WRITING), (_RETURN, 0, 0, _ALLOW)]
        program += _only(numbers[column], [_load(argument), *reading, _refuse(errno.EACCES)])
    commands: list[Instruction] = []
    for command in _FCNTL_COMMANDS:
        commands += [(_IF_EQUAL, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
    program += _only(FCNTL[column], [_load(1), *commands, _refuse(errno.EPERM)])
    no_new_limit: list[Instruction] = [_load(2), (_IF_EQUAL, 0, 3, 0), _load(2, half=1), (_IF_EQUAL, 0, 1, 0)]
    program += _only(PRLIMIT[column], [*no_new_limit, (_RETURN, 0, 0, _ALLOW), _refuse(errno.EPERM)])
    return [*program, _refuse(errno.EPERM)]


def _only(number: int | None, then: list[Instruction]) -> list[Instruction]:
    """Instructions that are run for one system call only."""
    return [] if number is None else [(_IF_EQUAL, 0, len(then), number), *then]


def _load(argument: int, half: int = 0) -> Instruction:
    """Load an argument of the call: its low (0) or high (1) 32 bits, on a little-endian machine."""
    return (_LOAD, 0, 0, 16 + 8 * argument + 4 * half)


def _refuse(number: int) -> Instruction:
    return (_RETURN, 0, 0, _REFUSE | number)
