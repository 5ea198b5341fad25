"""`lossbook serve --workers 2`: each model lives on two worker processes, and clients get the numbers of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lossbook.integrations import tinker as door
from lossbook.integrations.tinker import settings

from . import programs
from .process import run_program, serving

pytestmark = pytest.mark.slow


def rounded(told: Any) -> Any:
    """Numbers that sums in another order may move."""
    if isinstance(told, float):
        return pytest.approx(told, rel=1e-4, abs=1e-4)
    if isinstance(told, dict):
        return {key: rounded(one) for key, one in told.items()}
    return [rounded(one) for one in told] if isinstance(told, list) else told


def test_models_on_two_workers_train_and_sample_as_in_one_process(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="workers need the extra `workers`")
    before = settings.current().root
    settings.configure(root=tmp_path / "door", device="cpu", models={})
    try:
        expected = json.loads(json.dumps(programs.numbers(door.ServiceClient(), door)))
    finally:
        settings.configure(root=before)
    with serving(tmp_path / "root", "--workers", "2") as server:
        assert run_program(server, "numbers") == rounded(expected)
        assert server.stop() == 0
