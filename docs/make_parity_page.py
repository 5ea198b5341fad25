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
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lossbook import describe_loss, describe_preset, list_losses, list_presets

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parity.md"
HEAD = """<!-- Made by docs/make_parity_page.py (`make docs`) from tests/peers: change the comparison, not this page. -->

# Parity with other libraries

What is said here of other libraries was either run or read, and this page says which.

## Run

Tests run these packages' own code beside ours, on the same random data with masks that have holes, rows that are masked whole,
advantages of 0 and ratios beyond every bound, and compare values and gradients. `make test` installs them; those in `.venv/peers` come
without what they require, and what their losses import and do not need has an empty stand-in there (tests/peers/packages.py).

| package | version | comparisons | installed | also run |
|---|---|---|---|---|
"""
READ = """
## Read

Of these no code is run here: their presets and the remarks on cards are from their source or documentation at that version.

| system | version | presets | cards |
|---|---|---|---|
"""
FIGURES = """
## Losses

The figures are the largest differences, in proportion to the size of what is compared where that is above 1 (absolute for TRL, Sentence
Transformers and the cookbook), rounded up to a power of ten with a digit to spare, so that they are the same on other machines.
`tested to` is the limit in `pytest tests/peers`. If the peer's defaults give another loss, `settings` and `note` say which settings make
both equal. If a peer works in float32, so do the figures.

"""
PRESETS = """
## Presets

Each with its peer's defaults, as installed. Presets of systems that are read only are called by the tests, and compared with nothing.

"""
TABLE = """| loss | settings | peer | package | version | value | gradient | tested to | note |
|---|---|---|---|---|---|---|---|---|
"""
#: Where a package lies, and what of it is run beside losses.
ALSO = {
    "trl": "the off-policy mask, entropy masks; defaults of its configurations",
    "verl": "advantages, weights and rejections of rollouts; defaults of its configurations",
    "skyrl": "advantages, masks and weights of rollouts; defaults of its configurations",
    "openrlhf": "rejections of rollouts",
    "areal": "rejections of rollouts",
    "tinker-cookbook": "advantages, KL penalties, discounted sums",
    "liger-kernel": "defaults of its constructors",
    "sentence-transformers": "defaults of its constructors",
}
#: What cards and presets call by another name than the package that is run, or than one another.
NAMES = {
    "liger": "liger-kernel",
    "sentence transformers": "sentence-transformers",
    "fireworks": "Fireworks",
    "fireworks-ai": "Fireworks",
    "fw-ai/cookbook": "Fireworks cookbook",
    "tinker": "Tinker's service",
}
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
    cases = sorted(peers("parity").cases(), key=lambda case: (case.loss, case.row))
    losses, presets = ([case for case in cases if (":" in case.loss) is wanted] for wanted in (False, True))
    parts = [HEAD, *run_lines(cases), READ, *read_lines(cases), FIGURES, TABLE, *map(row_of, losses)]
    parts += [PRESETS, TABLE, *map(row_of, presets), TINKER, *tinker_lines()]
    PAGE.write_text("".join(parts), encoding="utf-8")
    print(f"{len(cases)} comparisons in {PAGE}")


def run_lines(cases: Sequence[Any]) -> Iterator[str]:
    """A row for each package whose code is run."""
    counts = Counter((case.package, case.version) for case in cases)
    for (package, version), count in sorted(counts.items()):
        where = "`.venv/peers`" if (peers("packages").FOLDER / package).is_dir() else "with its requirements"
        where = "without its requirements" if package == "tinker-cookbook" else where
        yield f"| {package} | {version} | {count} | {where} | {ALSO.get(package, '')} |\n"


def read_lines(cases: Sequence[Any]) -> Iterator[str]:
    """A row for each system and version that presets and cards are from, and of which no code is run."""
    presets, cards = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for preset in map(describe_preset, list_presets()):
        presets[named(preset.package), preset.version] += 1
    for system, _, version in (key.rpartition(" ") for name in list_losses() for key in describe_loss(name).differs):
        cards[named(system), version] += 1
    run = {(case.package, case.version) for case in cases}
    for one in sorted({*presets, *cards}, key=lambda one: (one[0].lower(), one[1])):
        if (one[0].lower(), one[1]) not in run:
            yield f"| {' | '.join(one)} | {presets[one] or ''} | {cards[one] or ''} |\n"


def named(system: str) -> str:
    """A system under the one name that this page has for it."""
    return NAMES.get(system.lower(), system)


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
