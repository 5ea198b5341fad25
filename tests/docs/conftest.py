"""The site of docs/, built once for all tests that look at it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. Its pages show the gallery's scripts without running them: tests/test_gallery.py does.

    Warnings are errors. Test processes that run beside this one share the folder.
    """
    for package in ("sphinx", "furo", "myst_parser", "sphinx_gallery", "sphinx_copybutton"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'lossbook[docs]'")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "index.html").exists():
            _build(folder)
    return folder


def _build(folder: Path) -> None:
    options = ("-b", "html", "-W", "-n", "--keep-going", "-q", "-D", "plot_gallery=0", "-d", f"{folder}.doctrees")
    line = [sys.executable, "-m", "sphinx", *options, str(DOCS), f"{folder}.new"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, f"the site does not build without a warning:\n{done.stderr}"
    Path(f"{folder}.new").rename(folder)
