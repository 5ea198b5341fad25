"""docs/models.md: written from the rows, and read back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from .outcome import Result, Row

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
HEAD = """<!-- Made by docs/make_models_page.py (`make docs`) from tests/trainer/every_model: change the code or the sweep, not this page. -->

# Models

Every type of causal language model that transformers {version} knows, built from a small configuration with random weights and
tried with all checks of [`lossbook doctor model`](doctor.md): {counts}.

Logprobs are those of the model's own logits, and the gradient is autograd's through them; a step is that of torch's AdamW; a
datum's numbers do not depend on its company, its order, packing or padding; sampled logprobs, also of several samples of several
prompts, are those of a forward; LoRA adapts what is listed and nothing else; merged and adapter exports reload with the same
logprobs; resuming is exact. Probes choose on every device, so a model that is not in the table is run rightly or refused as well.

- **datums**: "packs" puts many into one row, "shares prefixes" computes a common beginning once, "pads" gives each a row of its own
  in one forward, "one at a time" a forward of its own. Without a GPU, a model that packs with a mask over the row pads.
- **sampling**: "keeps a prompt once" for all its samples, or "its own cache" for each, or "no cache": the whole row for each token.
- **LoRA**: the weights that get an adapter by default, as parts of a layer; "none on" is listed by `get_info()` with the reason.
  Name weights with `--lora-targets` to adapt others.

| type | class | datums | sampling | LoRA |
|---|---|---|---|---|
"""
REFUSED = """
## Refused

With the error that lossbook gives.

| type | class | error |
|---|---|---|
"""
NOT_BUILT = """
## Not built

transformers does not build these from a configuration, with the error that it gives.

| type | class | error |
|---|---|---|
"""


def page_of(rows: Iterable[Row], version: str) -> str:
    """The page for the rows of all types."""
    rows = sorted(rows, key=lambda row: row.model_type)
    parts = {"right": HEAD.format(version=version, counts=counts_of(rows)), "refused": REFUSED, "not built": NOT_BUILT}
    tables = [head + "".join(f"{row}\n" for row in rows if row.result == result) for result, head in parts.items()]
    return "".join(tables)


def counts_of(rows: Iterable[Row]) -> str:
    """How many rows there are of each result."""
    counts = Counter(row.result for row in rows)
    return (
        f"{counts['right']} of {counts.total()} run, {counts['refused']} are refused with a reason, {counts['not built']} cannot "
        "be built; none gives wrong numbers, none ends in another error"
    )


def rows_of_page() -> list[Row]:
    """The page's rows."""
    results: list[Result] = ["right", "refused", "not built"]
    tables = re.split(r"\n## (?:Refused|Not built)\n", PAGE.read_text(encoding="utf-8"))
    return [
        Row(line[3 : line.index("`", 3)], *_cells(line, result))
        for result, table in zip(results, tables, strict=True)
        for line in table.splitlines()
        if line.startswith("| `")
    ]


def _cells(line: str, result: Result) -> tuple[str, Result, tuple[str, ...]]:
    _, architecture, *cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
    return architecture, result, tuple(cells)


def lines_of_page() -> dict[str, str]:
    """The page's rows by type."""
    return {row.model_type: str(row) for row in rows_of_page()}
