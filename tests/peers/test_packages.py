"""How libraries are run without what they require (packages.py)."""

from __future__ import annotations

import importlib.util
import os
import sys

import pytest

from . import packages


def test_stand_ins_are_there_only_while_a_library_is_imported() -> None:
    before = {**os.environ}
    core = packages.imported("openrlhf.models.loss", ("deepspeed",), ("openrlhf.models",))
    assert core.__file__ == str(packages.FOLDER / "openrlhf/models/loss.py")
    assert "deepspeed" not in sys.modules
    assert importlib.util.find_spec("deepspeed") is None
    assert str(packages.FOLDER) not in sys.path
    assert dict(os.environ) == before


def test_a_library_that_is_not_installed_skips_its_tests_and_says_how_to_have_it() -> None:
    with pytest.raises(pytest.skip.Exception, match="no_such_library is not installed: make test installs it in"):
        packages.imported("no_such_library.losses")
