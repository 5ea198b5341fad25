"""Write the table of promises into conform.md, from the promises themselves.

    python docs/serve/promises_table.py

tests/integrations/conform/test_conform.py fails while the page is not current.
"""

from __future__ import annotations

from pathlib import Path

from lossbook.integrations.conform import PROMISES

PAGE = Path(__file__).resolve().parent / "conform.md"
BEGIN, END = "<!-- promises -->\n", "<!-- end of promises -->"


def written(text: str) -> str:
    """The page with a current table."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    rows = [
        f"| `{one.id}` | {one.sentence.replace('|', '/')} | {'may be refused' if one.optional else 'raw requests' if one.raw else ''} |"
        for one in PROMISES.values()
    ]
    return "".join([before, BEGIN, "| id | promise | |\n|---|---|---|\n", "\n".join(rows), "\n", END, after])


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
