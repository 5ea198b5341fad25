"""Which releases of the SDK are let in."""

from __future__ import annotations

import pytest

from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.wire.versions import OLDEST, check_version, too_old


@pytest.mark.parametrize(
    "version",
    [
        *("0.22.3", "0.22.10", "0.23", "0.38.0", "0.100.0", "1.0.0", "0.38.0rc1", "0.40.0.dev3+local"),
        pytest.param("", id="a client that does not say"),
        pytest.param("my own client 3", id="what is no release"),
    ],
)
def test_releases_that_send_protobuf_are_let_in_and_so_is_what_is_no_release(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.22.2", "0.18.2", "0.1", "0.0.0", "0.22", "0.22.2.post1"])
def test_older_ones_are_refused_with_both_releases_and_the_mend(version: str) -> None:
    with pytest.raises(Refused) as refused:
        check_version(version)
    assert refused.value.status == 400
    assert ".".join(map(str, OLDEST)) in refused.value.message
    assert f"has {version.removesuffix('.post1')}:" in refused.value.message
    assert "pip install -U tinker" in refused.value.message


def test_what_a_client_hears_without_a_version_is_one_line() -> None:
    assert len(too_old().splitlines()) == 1
