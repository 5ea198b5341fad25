"""The Tinker door with a folder of its own, as a connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lossbook.integrations.conform import ConformSettings, Connection, in_process
from lossbook.integrations.tinker import settings


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = settings.current()
    settings.configure(root=tmp_path_factory.mktemp("door"), device="cpu", models={}, value_head=False)
    yield
    settings.configure(root=before.root, device="cpu")


@pytest.fixture
def own_door() -> Connection:
    return in_process()


@pytest.fixture
def small() -> ConformSettings:
    return ConformSettings(examples=3, tokens=8, error_seconds=2.0)
