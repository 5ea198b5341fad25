"""One thread, one hypothesis profile for each place, no network, and the browser for tests that are marked `browser`."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from typing import Any

# Before torch is imported, and inherited by the processes that tests start: on a busy machine threads that wait for each
# other make a test many times slower.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("LOSSBOOK_TINKER_DEVICE", "cpu")  # all clients of the Tinker door in one process share one device
os.environ["PYDANTIC_ERRORS_INCLUDE_URL"] = "0"  # as the command line sets it; pydantic reads it once per process

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("dev", deadline=None, max_examples=50)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection() -> None:
    """Garbage is not collected while tests are: what is made then stays, and looking through it takes a third of the time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on garbage is collected, and not looked for among the tests and the modules they import."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium of this machine, driven by playwright."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine: make test-browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'lossbook[browser]'")
    with playwright.sync_playwright() as api:
        launched = api.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
