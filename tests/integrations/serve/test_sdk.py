"""The unmodified SDK of Tinker, against a server process on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lossbook.integrations import tinker as door
from lossbook.integrations.tinker import settings

from . import programs
from .process import Server, run_program

pytestmark = pytest.mark.slow


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Any]:
    """The Tinker door in this process."""
    before = settings.current().root
    settings.configure(root=tmp_path / "door", device="cpu", models={})
    yield door.ServiceClient()
    settings.configure(root=before)


def test_training_and_sampling_have_the_numbers_of_the_door_in_one_process(server: Server, in_process: Any) -> None:
    expected = json.loads(json.dumps(programs.numbers(in_process, door)))
    assert run_program(server, "numbers") == expected


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(server: Server) -> None:
    run_program(server, "checkpoints")


def test_samplers_stay_what_they_were_while_their_model_trains_on(server: Server) -> None:
    run_program(server, "samplers")


def test_what_is_wrong_with_a_request_is_told_by_its_future_and_the_client_goes_on(server: Server) -> None:
    run_program(server, "mistakes")


def test_models_that_the_server_was_not_given_are_refused(server: Server) -> None:
    run_program(server, "other_models")


def test_runs_and_checkpoints_can_be_listed_marked_downloaded_and_deleted(server: Server) -> None:
    urls = run_program(server, "rest")
    assert urls
    assert all(url.startswith(server.url) for url in urls.values())


def test_the_sdks_command_line_lists_shows_marks_downloads_and_deletes(server: Server, tmp_path: Path) -> None:
    run_program(server, "command_line", str(tmp_path))
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 1
