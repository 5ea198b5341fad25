"""A pytest plug-in: the option `--lossbook-profile` (how many examples the kit draws) and the fixture `check_loss`.

Load it in the top conftest.py with `pytest_plugins = ["lossbook.losses.testing.plugin"]`, or with `pytest -p`. It is not
an entry point, because every pytest run in an environment with lossbook would then import torch.
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
        help="examples of the loss checks: ci (few, always the same), dev (few, different each time), nightly (many)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Pass the choice on in an environment variable, which workers of pytest-xdist inherit."""
    if profile := config.getoption("--lossbook-profile"):
        change = pytest.MonkeyPatch()
        change.setenv(VARIABLE, profile)
        config.add_cleanup(change.undo)


@pytest.fixture(scope="session")
def check_loss() -> Callable[..., Any]:
    """`lossbook.losses.testing.check_loss`: `def test_mine(check_loss): check_loss(my_loss, beta=0.5)`."""
    from .run import check_loss

    return check_loss
