"""A pytest plug-in: how many examples the conformance kit draws, and the fixture `check_loss`.

Ask for it in the top conftest.py, `pytest_plugins = ["lossbook.losses.testing.plugin"]`, or with `pytest -p`. It is no
entry point, for then every pytest in an environment that has lossbook would import torch before it starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

VARIABLE = "LOSSBOOK_PROFILE"
PROFILES = ("ci", "dev", "nightly")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --lossbook-profile."""
    parser.getgroup("lossbook").addoption(
        "--lossbook-profile",
        choices=PROFILES,
        help="examples of the loss checks: ci (few, the same every time), dev (few, new ones every time), nightly (many)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hand the choice on by environment variable, which workers of pytest-xdist inherit."""
    if profile := config.getoption("--lossbook-profile"):
        change = pytest.MonkeyPatch()
        change.setenv(VARIABLE, profile)
        config.add_cleanup(change.undo)


@pytest.fixture(scope="session")
def check_loss() -> Callable[..., Any]:
    """`lossbook.losses.testing.check_loss`: `def test_mine(check_loss): check_loss(my_loss, beta=0.5)`."""
    from .run import check_loss

    return check_loss
