"""What a text could do if a verifier ran it: each attack works in an ordinary process, and does nothing in a confined one."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lossbook.cookbook.confined.process import Confined, Failure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's")

#: A verifier that runs what it is given, as those that call eval do; an answer sets `score`.
VERIFIER = """
kept = {"score": 0.25, "notes": []}
def run(answer, row):
    names = {"score": kept["score"], "kept": kept, "row": row}
    exec(answer, names)
    return names["score"]
"""
#: Generous: the limit is reached on an idle machine only where an answer never ends.
SECONDS = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifier")
    (folder / "runs_answers.py").write_text(VERIFIER)
    return folder


@pytest.fixture(scope="module")
def verifier(folder: Path) -> Iterator[Confined]:
    process = Confined("function", {"path": "runs_answers:run"}, (str(folder),), gibibytes=1)
    yield process
    process.end()


def ask(verifier: Confined, code: str, seconds: float = SECONDS) -> float | Failure:
    return verifier.score({}, textwrap.dedent(code), seconds=seconds, alone=True)


def works_outside(code: str, **environment: str) -> None:
    """Run an attack in an ordinary process, which must be able to do it."""
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=300, env={**os.environ, **environment}
    )


def refused(answer: float | Failure) -> str:
    """The text of an error that the attack raised."""
    assert isinstance(answer, Failure), answer
    assert not answer.is_limit, answer
    return answer.text


@pytest.mark.parametrize(
    "code",
    [
        "import os; assert os.system('touch PATH') == 0",
        "import subprocess; subprocess.run(['touch', 'PATH'], check=True)",
        "import os; os.posix_spawn('/usr/bin/touch', ['touch', 'PATH'], {})",
        "import os; os.execv('/usr/bin/touch', ['touch', 'PATH'])",
        "open('PATH', 'w').close()",
        "import os; os.close(os.open('PATH', os.O_CREAT | os.O_RDWR))",
        "import os; os.mkdir('PATH')",
        "import os; os.symlink('/', 'PATH')",
        "import os; os.mkfifo('PATH')",
        "import sqlite3; sqlite3.connect('PATH').execute('create table t (x)')",
        "import ctypes; assert ctypes.CDLL(None).creat(b'PATH', 0o600) >= 0",
        "import ctypes; assert ctypes.CDLL(None).mkdir(b'PATH', 0o700) == 0",
        "import ctypes; assert ctypes.CDLL(None).symlink(b'/', b'PATH') == 0",
    ],
)
def test_nothing_is_written_by_whatever_road(verifier: Confined, tmp_path: Path, code: str) -> None:
    works_outside(code.replace("PATH", str(tmp_path / "outside")))
    assert os.path.lexists(tmp_path / "outside")
    refused(ask(verifier, code.replace("PATH", str(tmp_path / "inside"))))
    assert not os.path.lexists(tmp_path / "inside")


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.remove('PATH')",
        "import os; os.truncate('PATH', 0)",
        "import os; os.rename('PATH', 'PATH.2')",
        "import os; os.chmod('PATH', 0)",
        "import os; os.utime('PATH', (0, 0))",
        "import ctypes; assert ctypes.CDLL(None).unlink(b'PATH') == 0",
        "import ctypes; assert ctypes.CDLL(None).chmod(b'PATH', 0) == 0",
    ],
)
def test_a_file_that_is_there_stays_as_it_is(verifier: Confined, folder: Path, code: str) -> None:
    """In a folder that may be read."""
    kept = folder / "kept"
    kept.write_text("as it was")
    before = kept.stat()
    refused(ask(verifier, code.replace("PATH", str(kept))))
    after = kept.stat()
    assert (kept.read_text(), before.st_mode, before.st_mtime_ns) == ("as it was", after.st_mode, after.st_mtime_ns)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', PORT))",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT', timeout=5)",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import _socket; _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)",
        "import ctypes; assert ctypes.CDLL(None).socket(2, 1, 0) >= 0",
    ],
)
def test_nothing_is_sent(verifier: Confined, code: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        refused(ask(verifier, code.replace("PORT", str(listener.getsockname()[1]))))
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_users_environment_is_not_there_and_that_of_other_processes_cannot_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    verifier = Confined("function", {"path": "runs_answers:run"}, (str(folder),))
    code = "import os; names = set(os.environ) & {'HF_TOKEN', 'WANDB_API_KEY', 'HOME', 'USER'}; score = len(names)"
    assert ask(verifier, code) == 0
    read = f"score = len(open('/proc/{os.getpid()}/environ').read())"
    works_outside(read)
    if "Landlock" not in missing_walls(verifier):
        refused(ask(verifier, read))
    verifier.end()


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "/proc/self/mem", "/"])
def test_only_python_and_its_packages_can_be_read(verifier: Confined, folder: Path, path: str) -> None:
    if "Landlock" in missing_walls(verifier):
        pytest.skip("this Linux has no Landlock")
    reads = "import os; score = len(os.listdir('PATH') if os.path.isdir('PATH') else open('PATH', 'rb').read(0) + b'.')"
    works_outside(reads.replace("PATH", path))
    refused(ask(verifier, reads.replace("PATH", path)))
    assert ask(verifier, reads.replace("PATH", str(folder / "runs_answers.py"))) == 1
    assert ask(verifier, "import wave, uuid, colorsys; score = 1") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import os, signal; os.kill(PID, signal.SIGKILL)",
        "import os, signal; os.killpg(os.getpgid(PID), signal.SIGKILL)",
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal; os.kill(-1, signal.SIGKILL)",
        "import ctypes; assert ctypes.CDLL(None).kill(PID, 9) == 0",
        "import ctypes; assert ctypes.CDLL(None).ptrace(16, PID, 0, 0) == 0",
        "import resource; resource.prlimit(PID, resource.RLIMIT_CPU, (1, 1))",
        "import os; os.setpriority(os.PRIO_PROCESS, PID, 19)",
        "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, PID); fcntl.fcntl(0, fcntl.F_SETSIG, 9)",
    ],
)
def test_no_other_process_is_touched(verifier: Confined, code: str) -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        before = (os.sched_getaffinity(other.pid), os.getpriority(os.PRIO_PROCESS, other.pid))
        answer = ask(verifier, code.replace("PID", str(other.pid)))
        assert other.poll() is None
        assert (os.sched_getaffinity(other.pid), os.getpriority(os.PRIO_PROCESS, other.pid)) == before
        other.kill()
    refused(answer)
    assert ask(verifier, "score = 1") == 1


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(64):\n    if os.fork() == 0: os._exit(0)",
        "import threading\nfor _ in range(64): threading.Thread(target=print).start()",
        "import ctypes\nassert ctypes.CDLL(None).fork() >= 0",
        "import multiprocessing; multiprocessing.get_context('spawn').Process(target=print).start()",
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))",
        "files = [open('/dev/null') for _ in range(200)]",
        "import os; os.chroot('/')",
        "import os; os.setuid(12345)",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/mnt', b'tmpfs', 0, None) == 0",
        "import ctypes; assert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
        "import ctypes; assert ctypes.CDLL(None).memfd_create(b'x', 0) >= 0",
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600) >= 0",
    ],
)
def test_no_process_thread_limit_or_right_is_gained(verifier: Confined, code: str) -> None:
    refused(ask(verifier, code))


#: Calls by number on x86-64, and their arguments: roads round those that a filter may have thought of.
CALLS = {
    "openat for writing": (257, -100, "b'PATH'", 0o101, 0o600),
    "openat2": (437, -100, "b'PATH'", "(ctypes.c_uint64 * 3)(0o101, 0o600, 0)", 24),
    "io_uring_setup": (425, 1, "(ctypes.c_char * 120)()"),
    "clone": (56, 17, 0, 0, 0, 0),
    "clone of another table": (56 | 1 << 30, 17, 0, 0, 0, 0),
    "clone3": (435, "(ctypes.c_uint64 * 8)()", 64),
    "execveat": (322, -100, "b'/bin/true'", 0, 0, 0),
    "process_vm_readv": (310, "PID", 0, 0, 0, 0, 0),
    "pidfd_open": (434, "PID", 0),
    "rt_sigqueueinfo": (129, "PID", 9, "(ctypes.c_char * 128)()"),
    "tgkill": (234, "PID", "PID", 9),
    "socketpair": (53, 1, 1, 0, "(ctypes.c_int * 2)()"),
    "bpf": (321, 0, "(ctypes.c_char * 120)()", 72),
    "keyctl": (250, 0, -3, 0),
    "prlimit64": (302, 0, 7, "(ctypes.c_uint64 * 2)(64, 64)", 0),
    "ioctl": (16, 0, 0x5412, "b'x'"),
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_kernel_refuses_every_other_call(verifier: Confined, tmp_path: Path, call: tuple[object, ...]) -> None:
    arguments = ", ".join(map(str, call)).replace("PATH", str(tmp_path / "inside")).replace("PID", str(os.getpid()))
    code = f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.syscall({arguments}) == -1
        score = ctypes.get_errno()
    """
    if "seccomp" in missing_walls(verifier):
        pytest.skip("this Linux has no seccomp")
    assert ask(verifier, code) in (errno.EPERM, errno.EACCES)
    assert not (tmp_path / "inside").exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code of x86-64")
def test_a_call_by_the_numbers_of_another_machine_ends_the_worker(verifier: Confined) -> None:
    code = """
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid of 32-bit programs
        score = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    """
    answer = ask(verifier, code)
    assert isinstance(answer, Failure)
    assert answer.is_limit


def test_the_descriptors_of_others_are_closed(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        verifier = Confined("function", {"path": "runs_answers:run"}, (str(folder),))
        code = """
            import os
            score = 0
            for descriptor in range(256):
                try:
                    score += os.write(descriptor, b"") == 0
                except OSError:
                    pass
        """
        # 0, 1 and 2 lead nowhere; one pipe leads to the server, and the other can only be read
        assert ask(verifier, code) == 4
        verifier.end()
    assert (tmp_path / "open").read_text() == ""


ENDLESS = {
    "a number without end": "9**9**9**9",
    "a loop without end": "while True: pass",
    "a sleep without end": "import time; time.sleep(1e6)",
    "signals are no way out": "import signal\nfor s in (2, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
}


@pytest.mark.parametrize("code", ENDLESS.values(), ids=ENDLESS)
def test_an_answer_without_end_costs_its_time_and_the_next_is_scored(verifier: Confined, code: str) -> None:
    assert ask(verifier, code, seconds=1.0) == Failure("it took more than 1 seconds", is_limit=True)
    assert ask(verifier, "score = 1") == 1


CRASHES = {
    "a balloon": "x = bytearray(1 << 31)",
    "a slow balloon": "x = []\nwhile True: x.append(bytearray(1 << 26))",
    "a nest of brackets": "import ast; ast.parse('(' * 10**6)",
    "a segmentation fault": "import ctypes; ctypes.string_at(0)",
    "an exit": "import os; os._exit(0)",
    "an exit that raises": "raise SystemExit(0)",
    "an abort": "import os; os.abort()",
    "Ctrl-C": "raise KeyboardInterrupt",
    "a stack without end": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return list(map(f, [x]))\nf(0)",
}


@pytest.mark.parametrize("code", CRASHES.values(), ids=CRASHES)
def test_a_crash_costs_one_answer(verifier: Confined, code: str) -> None:
    assert isinstance(ask(verifier, code), Failure)
    assert ask(verifier, "score = 1") == 1


#: Writes to every descriptor, among which is the pipe to the server.
WRITE = """
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, TEXT)
    except OSError:
        pass
"""


def test_megabytes_on_the_pipe_are_cut_off(verifier: Confined) -> None:
    answer = ask(verifier, WRITE.replace("TEXT", "b'7' * (1 << 24)"))
    assert answer == Failure("it wrote more than a score", is_limit=True)
    assert ask(verifier, "score = 1") == 1


@pytest.mark.parametrize("text", [b"nonsense\n", b"{}\n", b"[" * 4000 + b"\n", b"\xff\xfe\n", b"\n"])
def test_what_is_no_number_on_the_pipe_is_no_score(verifier: Confined, text: bytes) -> None:
    answer = ask(verifier, WRITE.replace("TEXT", repr(text)))
    assert isinstance(answer, Failure)
    assert ask(verifier, "score = 1") == 1


def test_an_answer_can_forge_its_own_score_and_no_other(verifier: Confined) -> None:
    """What it writes in advance, or changes in the verifier, ends with its worker."""
    assert ask(verifier, WRITE.replace("TEXT", "b'1.0\\n' * 100")) == 1
    assert [ask(verifier, "pass") for _ in range(3)] == [0.25] * 3
    ask(verifier, "kept['score'] = 1.0; score = 1.0")
    assert [ask(verifier, "pass") for _ in range(3)] == [0.25] * 3
    ask(verifier, "import builtins; builtins.float = lambda value: 1.0")
    assert ask(verifier, "pass") == 0.25


def test_messages_of_an_answer_are_one_short_line(verifier: Confined) -> None:
    answer = ask(verifier, "raise ValueError('a\\nb\\x1b[31m' + 'c' * 10_000)")
    assert isinstance(answer, Failure)
    assert len(answer.text) <= 300
    assert answer.text.isprintable()


def missing_walls(verifier: Confined) -> str:
    """The walls that this system does not have."""
    verifier.call()
    return "; ".join(verifier.missing)


@pytest.mark.slow
def test_the_walls_stand_for_a_user_without_rights_too(folder: Path, tmp_path: Path) -> None:
    """In a user namespace, as an ordinary user: without the rights of root, which tests may have."""
    unshare = shutil.which("unshare")
    command = [unshare or "", "--user", "--map-user=1000", "--map-group=1000"]
    if unshare is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this system does not let a test change its user")
    script = f"""
        import os
        from lossbook.cookbook.confined.process import Confined, Failure
        verifier = Confined("function", {{"path": "runs_answers:run"}}, ({str(folder)!r},))
        assert os.getuid() == 1000
        for code in ("open({str(tmp_path / "inside")!r}, 'w')", "import os; os.fork()", "import socket; socket.socket()"):
            answer = verifier.score({{}}, code, seconds=60, alone=True)
            assert isinstance(answer, Failure) and "rmi" in answer.text, answer
        assert verifier.score({{}}, "score = 1", alone=True) == 1
    """
    subprocess.run([*command, sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=600)
    assert not (tmp_path / "inside").exists()


def test_answers_may_be_scored_from_any_thread(verifier: Confined) -> None:
    scores: dict[int, float | Failure] = {}
    threads = [
        threading.Thread(target=lambda at=at: scores.update({at: ask(verifier, f"score = {at}")})) for at in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scores == {at: float(at) for at in range(12)}
