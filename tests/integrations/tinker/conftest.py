"""The Tinker door with a folder of its own, and a small model in training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lossbook.integrations import tinker
from lossbook.integrations.tinker import settings

KEPT = {"device": "cpu", "models": {}, "stable_reinforce": None, "value_head": False}


@pytest.fixture
def configure(tmp_path: Path) -> Iterator[Any]:
    """Changes the door's settings for one test; its runs lie in the test's folder."""
    before = settings.current().root
    settings.configure(root=tmp_path / "door", **KEPT)
    yield settings.configure
    settings.configure(root=before, **KEPT)


@pytest.fixture
def service(configure: Any) -> Iterator[tinker.ServiceClient]:
    with tinker.ServiceClient() as service:
        yield service


@pytest.fixture
def training(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client("tiny", rank=4, seed=0).result()


@pytest.fixture(scope="module")
def standing_service(tmp_path_factory: pytest.TempPathFactory) -> tinker.ServiceClient:
    """A service client for all tests of a file."""
    before = settings.current().root
    settings.configure(root=tmp_path_factory.mktemp("door"), **KEPT)
    service = tinker.ServiceClient()
    service.create_sampling_client(base_model="tiny").result()  # its session has begun, with these settings
    settings.configure(root=before)
    return service


@pytest.fixture(scope="module")
def standing(standing_service: tinker.ServiceClient) -> tinker.TrainingClient:
    """A training client for those tests of a file that change nothing."""
    return standing_service.create_lora_training_client("tiny", rank=4, seed=0).result()
