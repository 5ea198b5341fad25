"""Old and new releases of Tinker's SDK against one server: those that train get the same numbers, the others a clear error.

Each lies in `.venv/sdks`, where the tests install it without its requirements; without a network they are skipped.
`make test-sdks` also takes the newest release that the package index has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from . import releases
from .process import Server

SDKS = Path(sys.prefix) / "sdks"
PROGRAM = Path(__file__).with_name("abilities.py")
#: Seconds for a program on a machine that does much else.
PATIENCE = 900


def installed(name: str, requirement: str, *options: str) -> Path:
    """The folder of a release, which is installed if it is not there."""
    SDKS.mkdir(exist_ok=True)
    folder = SDKS / name
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    with FileLock(SDKS / f"{name}.lock"):
        if options or not folder.exists():
            made = subprocess.run(
                [*command, "--no-deps", "--no-compile", *options, "--target", str(folder), requirement],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            if made.returncode:
                pytest.skip(f"{requirement} could not be installed into {folder}: {made.stderr.strip()[-200:]}")
    return folder


def told(server: Server, folder: Path | None = None) -> dict[str, Any]:
    """What the program of all abilities told, with the release in `folder` or the one that is installed."""
    paths = [] if folder is None else [str(folder)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(PROGRAM)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            "TINKER_BASE_URL": server.url,
            "TINKER_API_KEY": "tml-local",
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pinned(server: Server) -> dict[str, Any]:
    """What the pinned release told, which does everything."""
    pytest.importorskip("tinker", reason="the SDK comes with `make test`")
    everything = told(server)
    assert everything["release"] == releases.PINNED
    assert not {
        name: said for name, said in everything.items() if isinstance(said, dict) or said == "not in this release"
    }
    return everything


@pytest.mark.slow
@pytest.mark.parametrize("release", [one for one, lacks in releases.RELEASES.items() if lacks is not None][1:])
def test_a_release_that_trains_here_gets_the_numbers_of_the_pinned_one(
    server: Server, pinned: dict[str, Any], release: str
) -> None:
    lacks = releases.RELEASES[release] or set()
    expected = {**pinned, "release": release, **dict.fromkeys(lacks, "not in this release")}
    assert told(server, installed(release, f"tinker=={release}")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("release", [one for one, lacks in releases.RELEASES.items() if lacks is None])
def test_a_release_that_is_too_old_hears_so_at_its_first_call(server: Server, release: str) -> None:
    said = told(server, installed(release, f"tinker=={release}"))
    assert set(said) == {"release", "connect"}
    assert (
        f"the server needs release 0.22.3 or newer of the package tinker, and this client has {release}"
        in (said["connect"]["error"])
    )


@pytest.mark.slow
@pytest.mark.skipif("LOSSBOOK_NEWEST_SDK" not in os.environ, reason="make test-sdks asks the package index for it")
def test_the_newest_release_gets_the_numbers_of_the_pinned_one(server: Server, pinned: dict[str, Any]) -> None:
    newest = told(server, installed("newest", "tinker", "--upgrade"))
    assert {**newest, "release": releases.PINNED} == pinned, f"tinker {newest['release']}"


def test_the_page_has_the_table_of_releases() -> None:
    text = releases.PAGE.read_text(encoding="utf-8")
    assert releases.written(text) == text, "python -m tests.integrations.serve.releases writes it"
