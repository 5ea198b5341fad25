"""Whatever a client uploads is a custom loss or is refused by one line; nothing of it is imported, allocated or run."""

from __future__ import annotations

import resource
import sys
from typing import Any

import pytest
import torch

from lossbook.integrations.serve.graphs import dry_run, read_graph
from lossbook.integrations.serve.refusals import Refused

from .attacks import BLOW_UPS, attacks
from .encoding import LOGPROBS, graph, node

ATTACKS = attacks()
#: Most that reading and trying all of them may add to the process, in KiB; each of the blow-ups would take gigabytes.
MOST_MEMORY = 512 * 1024


def answered(raw: Any, inputs: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        dry_run(read_graph(raw, inputs))
    return caught.value


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """What torch imports at the first run of any graph is not the attack's doing."""
    dry_run(read_graph(graph(node("torch.exp", "@logprobs")), LOGPROBS))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_in_one_line(name: str) -> None:
    raw, inputs, words = ATTACKS[name]
    refused = answered(raw, inputs)
    assert refused.status == 400
    assert refused.message.startswith("custom loss: ")
    assert "\n" not in refused.message
    assert len(refused.message) < 400
    assert words in refused.message


def test_there_are_many_attacks() -> None:
    assert len(ATTACKS) >= 60


def test_nothing_is_imported_by_them() -> None:
    for raw, inputs, _ in ATTACKS.values():
        answered(raw, inputs)
    before = set(sys.modules)
    for raw, inputs, _ in ATTACKS.values():
        answered(raw, inputs)
    assert set(sys.modules) == before
    assert not {name for name in before if name in ("torch.hub.someone", "torch.utils.cpp_extension")}
    assert torch.get_default_dtype() == torch.float32


def test_none_of_them_allocates_what_it_asks_for() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for raw in BLOW_UPS.values():
        answered(raw, LOGPROBS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY
