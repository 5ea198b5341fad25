"""Releases of Tinker's SDK, and what each is able to do against the server: the table of docs/serve/versions.md.

python -m tests.integrations.serve.releases     writes the table
"""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "serve" / "versions.md"
BEGIN, END = "<!-- releases -->\n", "<!-- end of releases -->"
#: The release that all others are held to: the one that is pinned.
PINNED = "0.38.0"
#: What a release has no call for, by the names in `abilities.py`; None: it is refused.
RELEASES: dict[str, set[str] | None] = {
    PINNED: set(),
    "0.36.0": set(),
    "0.30.4": {"graph"},
    "0.22.3": {"graph", "export"},
    "0.22.2": None,
    "0.12.0": None,
}
COLUMNS = {
    "train": "trains",
    "custom": "custom functions",
    "resume": "saves, resumes",
    "sample": "samples",
    "likeliest": "likeliest tokens of prompts",
    "list": "lists runs and checkpoints",
    "export": "external weights",
    "graph": "uploaded graphs",
    "mistake": "hears what is wrong",
}


def table() -> str:
    """Markdown: a row for each release."""
    rows = ["| tinker | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    for release, lacks in RELEASES.items():
        cells = ["refused" if lacks is None else "has none" if name in lacks else "yes" for name in COLUMNS]
        rows.append(f"| {release} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def written(text: str) -> str:
    """The page with a current table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
