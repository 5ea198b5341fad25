"""The public names of the package."""

from __future__ import annotations

import pytest

import lossbook


@pytest.mark.parametrize("name", lossbook.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(lossbook, name) is not None
    assert name in dir(lossbook)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lossbook' has no attribute 'no_such_name'"):
        _ = lossbook.no_such_name
