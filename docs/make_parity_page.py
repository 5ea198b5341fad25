"""Write parity.md from the comparisons in tests/peers and the registry. `make docs` runs this script.

    python docs/make_parity_page.py

Needs the extra `peers`, and tinker-cookbook, which `make docs` installs. tests/peers fails when the page lacks a comparison.
"""

from __future__ import annotations

import importlib
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parity.md"
HEAD = """<!-- Made by docs/make_parity_page.py (`make docs`) from tests/peers: change the comparison, not this page. -->

# Parity with other libraries

Each row runs a loss and the function that another library's package ships for it on the same random data, and compares the
values and their gradients with respect to the model's outputs. The figures are the largest absolute differences, rounded up to a
power of ten with a digit to spare, so that they are the same on other machines. `tested to` is the limit in `pytest tests/peers`.
If the peer's defaults give another loss, `settings` and `note` say which settings make both equal. If a peer works in float32, so
do the figures.

| loss | settings | peer | package | version | value | gradient | tested to | note |
|---|---|---|---|---|---|---|---|---|
"""
TINKER = """
## The tinker service

A loss that reads logprobs only can be passed to `forward_backward_custom` of the tinker SDK: `get_loss(...)`. If it also
treats each datum separately, `get_loss(..., reduction="sum").trace()` gives the function, its ranks and its torch.fx graph for
`create_custom_loss`, which runs in one pass on the service. The tests in tests/peers run the SDK's own code on both, without a
network; the service itself has not been tested.

"""
NEVER_SMALLER = 1e-12


def main() -> None:
    """Run all comparisons and write the page."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = [row_of(case) for case in sorted(peers("parity").cases(), key=lambda case: (case.loss, case.row))]
    PAGE.write_text(HEAD + "".join(rows) + TINKER + "".join(tinker_lines()), encoding="utf-8")
    print(f"{len(rows)} comparisons in {PAGE}")


def peers(module: str) -> Any:
    """A module of tests/peers, imported as pytest does."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"tests.peers.{module}")


def row_of(case: Any) -> str:
    """Run a comparison and return its row of the table."""
    value, gradient = case.differences()
    figures = (bound(value, case.tolerance), bound(gradient, case.tolerance), f"{case.tolerance:g}")
    return "| " + " | ".join((*case.row, *figures, case.note.replace("|", "\\|"))) + " |\n"


def bound(difference: float, tolerance: float) -> str:
    """`< 1e-12`: a power of ten at least ten times as large, but at most the limit of the test."""
    power = 10.0 ** (math.ceil(math.log10(difference)) + 1) if difference > 0 else 0.0
    return f"< {min(max(power, NEVER_SMALLER), tolerance):.0e}"


def tinker_lines() -> Sequence[str]:
    """The losses that can run on the tinker service, by how."""
    losses = peers("portability").by_portability()
    return [
        f"- {title} ({len(names)}): {', '.join(f'`{name}`' for name in names)}\n" for title, names in losses.items()
    ]


if __name__ == "__main__":
    main()
