"""A server process with two keys and small limits, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..process import Server, serving
from .client import Client

ANN, BEN = "tml-key-of-ann-0123456789", "tml-key-of-ben-9876543210"
LIMITS = {
    "body_bytes": 200_000,
    "header_seconds": 2,
    "sessions_per_key": 40,
    "models_per_key": 24,
    "requests_per_key": 60,
    "lora_rank": 8,
}


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`lossbook serve` with the keys of Ann and Ben."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys.txt").write_text(f"{ANN}\n{BEN}\n")
    limits = [str(part) for pair in LIMITS.items() for part in pair]
    flags = ["--keys-file", str(folder / "keys.txt"), "--hold-seconds", "1", "--gap-seconds", "4", "--limits", *limits]
    with serving(folder / "root", *flags) as server:
        yield server


@pytest.fixture
def ann(guarded: Server) -> Iterator[Client]:
    """Ann, who owns what is made with her key."""
    with Client(guarded.url, ANN) as client:
        yield client


@pytest.fixture
def ben(guarded: Server) -> Iterator[Client]:
    """Ben, who has a key too."""
    with Client(guarded.url, BEN) as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of the server without keys."""
    with Client(server.url) as one:
        yield one
