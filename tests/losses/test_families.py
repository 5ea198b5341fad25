"""The folder of a family exports every loss that its files register, without a list."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lossbook import get_loss

from .cases import NEEDED, shipped

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

NEW_FILE = '''
from ..registry import register_loss


@register_loss("halved", source="nowhere")
def halved(logprobs):
    """-logprobs / 2."""
    return -0.5 * logprobs
'''


@pytest.mark.parametrize("name", shipped())
def test_a_loss_can_be_imported_from_the_folder_of_its_family(name: str) -> None:
    function = get_loss(name, **NEEDED.get(name, {})).spec.function
    family = importlib.import_module(f"lossbook.losses.{function.__module__.split('.')[2]}")
    assert getattr(family, function.__name__) is function
    assert function.__name__ in family.__all__
    assert function.__name__ in dir(family)


@pytest.mark.parametrize(
    "name", ["supervised", "policy", "preference", "distillation", "embedding", "ranking", "value"]
)
def test_what_a_family_lists_can_be_imported_from_it(name: str) -> None:
    family = importlib.import_module(f"lossbook.losses.{name}")
    assert all(callable(getattr(family, public)) for public in family.__all__)


def test_a_loss_in_a_new_file_of_a_family_needs_no_list(tmp_path: Path) -> None:
    package = tmp_path / "lossbook"
    for part in ("datums", "losses"):
        shutil.copytree(ROOT / part, package / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", package)
    (package / "losses" / "supervised" / "halved.py").write_text(NEW_FILE)
    program = "from lossbook import get_loss; from lossbook.losses.supervised import halved; print(get_loss('halved'), halved.__module__)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**ONE_THREAD, "PYTHONPATH": str(tmp_path)},
        timeout=600,
    )
    assert run.stdout.startswith("halved(reduction='sum')")
    assert run.stdout.strip().endswith("lossbook.losses.supervised.halved")


@pytest.mark.parametrize("part", ["datums", "losses", "trainer", "cookbook"])
def test_a_part_imported_from_the_root_says_how_it_is_imported(part: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {part}"], capture_output=True, text=True, cwd=ROOT, env=ONE_THREAD, timeout=600
    )
    assert f"write `import lossbook.{part}`" in run.stderr.splitlines()[-1]
