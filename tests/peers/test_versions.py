"""What we say of another system names the release it was read from; where that package is installed, it is the installed one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from lossbook import list_losses
from lossbook.losses.registry import spec_of

from . import packages

#: The package of each system that is installed here.
INSTALLED = {
    "TRL": "trl",
    "verl": "verl",
    "SkyRL": "skyrl",
    "OpenRLHF": "openrlhf",
    "AReaL": "areal",
    "Liger": "liger-kernel",
    "Tinker": "tinker",
    "Sentence Transformers": "sentence-transformers",
    "Transformers": "transformers",
}
#: What was read from an older release, since the system has none of it any more.
OLDER = {("bco", "TRL 0.29.0")}


def remarks() -> Iterator[tuple[str, str]]:
    """Each loss with each system that it is said to differ from."""
    for name in list_losses():
        yield from ((name, system) for system in spec_of(name).differs)


@pytest.mark.parametrize(("loss", "system"), [pytest.param(*one, id=" ".join(one)) for one in remarks()])
def test_what_a_card_says_of_another_system_names_the_installed_release(loss: str, system: str) -> None:
    name, _, version = system.rpartition(" ")
    assert re.fullmatch(r"[\d.]+|[0-9a-f]{7}|20\d\d-\d\d", version), f"{loss}: differs[{system!r}] names no release"
    if name in INSTALLED and (loss, system) not in OLDER:
        packages.installed(INSTALLED[name])
        now = packages.release(INSTALLED[name])
        assert version == now, f"{loss}: read {name} {now}, then change {system!r}"
