"""`import tinker` means lossbook's door, and a program runs under `lossbook tinker` as under python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lossbook.cookbook.cli import main
from lossbook.cookbook.commands.tinker import program
from lossbook.integrations.tinker.settings import from_environment

#: Long enough for a loaded machine; what hangs ends.
LIMIT = 300
COMMAND = "from lossbook.cookbook.cli import command; command()"
PYTHON = (sys.executable,)
LOSSBOOK = (sys.executable, "-c", COMMAND, "tinker")


def run(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT)


def output(code: str, cwd: Path) -> str:
    done = run(*PYTHON, "-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


INSTALL = "from lossbook.integrations.tinker.alias import install; install(); install()\n"


@pytest.mark.slow
def test_after_install_every_way_of_importing_gives_the_door(tmp_path: Path) -> None:
    shown = output(
        INSTALL
        + """
import importlib.util, sys
sys.modules.update(dict.fromkeys(["httpx", "pyqwest", "zstandard", "orjson"]))  # what the SDK installs cannot be imported
import tinker
assert tinker.Timeout(3) and tinker.ServiceClient and tinker.RestClient
assert tinker.lib.public_interfaces.APIFuture is tinker.APIFuture
import tinker.types as T
import tinker.types.tensor_data, tinker.lib.retry_handler
from tinker import types, TensorData, APIFuture
from tinker.types.loss_fn_type import LossFnType
from tinker.types.sample_response import SampleResponse
from tinker._exceptions import RequestFailedError
from tinker.lib.public_interfaces import APIFuture as Future
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
import lossbook.integrations.tinker as door
assert tinker is door is sys.modules["tinker"]
assert T is types is door.types is tinker.types
assert tinker.types.tensor_data.TensorData is TensorData is door.TensorData
assert SampleResponse is door.SampleResponse and RequestFailedError is door.RequestFailedError
assert Future is APIFuture is door.APIFuture
assert importlib.util.find_spec("tinker") is not None
assert door.types.__spec__.name == door.types.__name__ == "lossbook.integrations.tinker.types"
assert door.__spec__.name == "lossbook.integrations.tinker"
assert not [name for name, module in sys.modules.items() if module and "site-packages/tinker/" in str(getattr(module, "__file__", ""))]
print("same")
""",
        tmp_path,
    )
    assert shown == "same\n"


@pytest.mark.slow
def test_a_module_that_only_the_sdk_has_is_refused_by_name(tmp_path: Path) -> None:
    shown = output(
        INSTALL
        + """
for name in ("tinker.lib.internal_client_holder", "tinker._client", "tinker.types.no_such"):
    try:
        __import__(name)
    except ImportError as error:
        print(error.name, "|", error)
try:
    from tinker import AsyncTinker
except ImportError as error:
    print(error)
try:
    tinker = __import__("tinker")
    tinker.resources.AsyncModelsResource
except AttributeError as error:
    print(error)
""",
        tmp_path,
    )
    lines = shown.splitlines()
    for name, line in zip(("lib.internal_client_holder", "_client", "types.no_such"), lines, strict=False):
        assert line.startswith(f"tinker.{name} | tinker.{name} is not there: `tinker` is lossbook.integrations.tinker")
    assert "AsyncTinker" in lines[3]
    assert "sends requests to a server" in lines[4]


@pytest.mark.slow
def test_install_after_an_import_of_the_sdk_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "tinker"
    package.mkdir()
    (package / "__init__.py").write_text("")
    done = run(*PYTHON, "-c", "import tinker\n" + INSTALL, cwd=tmp_path)
    assert done.returncode == 1
    assert "install() must come first" in done.stderr


SCRIPT = """
import sys
print(sys.argv, __name__, sys.path[0])
if "--fail" in sys.argv:
    def deep():
        raise KeyError("why")
    deep()
if "--leave" in sys.argv:
    sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (["folder/script.py"], ["a", "--fail", "-m", "x"]),
        (["-m", "folder.script"], ["--fail"]),
        (["-m", "folder.script"], ["--root", "y", "--debug", "--help"]),
        (["folder/script.py"], ["--leave"]),
        (["folder/missing.py"], []),
    ],
)
def test_a_program_runs_as_python_runs_it(how: list[str], words: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "script.py").write_text(SCRIPT)
    ours = run(*LOSSBOOK, "--root", "here", *how, *words, cwd=tmp_path)
    plain = run(*PYTHON, *how, *words, cwd=tmp_path)
    assert ours.stdout == plain.stdout
    assert ours.stderr == plain.stderr
    assert ours.returncode == plain.returncode


@pytest.mark.slow
def test_a_program_and_the_processes_it_starts_import_the_door(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("""
import multiprocessing, subprocess, sys
import tinker

def worker(queue):
    queue.put(tinker.__name__)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=worker, args=(queue,))
    process.start()
    print(queue.get(timeout=200), flush=True)
    process.join()
    subprocess.run([sys.executable, "-c", "import tinker.types; print(tinker.__name__)"], check=True)
""")
    done = run(*LOSSBOOK, "script.py", cwd=tmp_path)
    assert done.stdout.split() == ["lossbook.integrations.tinker"] * 2, done.stderr


def test_options_before_the_program_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSBOOK_TINKER_MODELS", '{"a": "x", "b": "y"}')
    monkeypatch.setenv("LOSSBOOK_TINKER_DEVICE", "cpu")
    options = ["--root", "r", "--models", "Qwen/Q=q", "--models=b=c", "--stable-reinforce", "ppo", "--deterministic"]
    become = program([*options, "script.py", "--device", "cuda"])
    command, environment = become.args
    settings = from_environment(environment)
    assert command[1:] == ["script.py", "--device", "cuda"]
    assert settings.root == Path("r").absolute()
    assert settings.models == {"a": "x", "b": "c", "Qwen/Q": "q"}
    assert (settings.stable_reinforce, settings.deterministic, settings.device) == ("ppo", True, "cpu")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "name a SCRIPT"),
        (["-m"], 2, "name a SCRIPT"),
        (["--roots", "x", "script.py"], 2, "--roots"),
        (["--models", "x", "script.py"], 2, "'x' is not NAME=FOLDER"),
        (["--workers", "many", "script.py"], 2, "workers='many'"),
        (["--help"], 0, "stable_reinforce"),
    ],
)
def test_mistakes_in_the_command_are_said_before_the_program_starts(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "execve", pytest.fail)
    assert main(["tinker", *words]) == code
    assert said in "".join(capsys.readouterr())
