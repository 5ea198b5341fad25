"""Whether every link of the built site leads somewhere: pages, anchors, pictures, and files of the repository.

    make docs-site && python docs/check_links.py [FOLDER]

Links to other sites are asked for by `make docs-links`, which needs the network.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
HTML = ROOT / "docs" / "_build" / "html"
#: Links to the code name a path of the repository.
CODE = re.compile(r"https://github\.com/lossbook/lossbook/(?:blob|tree|raw)/main/([^#?]+)")


@dataclass
class Page(HTMLParser):
    """The ids of a page, and what it links to."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep ids and names, and the addresses of links, pictures, scripts and styles."""
        given = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := given.get(key))}
        is_hint = tag == "link" and given.get("rel") in ("canonical", "search", "index")
        self.links += [value for key in ("href", "src") if (value := given.get(key)) and not is_hint]


def check(folder: Path) -> tuple[int, list[str]]:
    """How many links were followed, and what is wrong with those that lead nowhere."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        pages[path] = Page()
        pages[path].feed(path.read_text(encoding="utf-8"))
    checked, wrong = 0, []
    for path, page in pages.items():
        for link in page.links:
            if (trouble := _trouble(path, link, folder, pages)) is not None:
                checked += 1
                wrong += [f"{path.relative_to(folder)}: {link}: {trouble}"] if trouble else []
    return checked, wrong


def _trouble(path: Path, link: str, folder: Path, pages: dict[Path, Page]) -> str | None:
    """None for a link that is not ours to follow, "" for one that leads somewhere."""
    if code := CODE.match(link):
        return "" if (ROOT / unquote(code[1])).exists() else "no such file in the repository"
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(folder.resolve()) or not target.exists():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return "no such anchor"
    return ""


def _lines(folder: Path) -> Iterator[str]:
    checked, wrong = check(folder.resolve())
    yield from wrong
    yield f"{checked} links followed, {len(wrong)} lead nowhere"


def main(arguments: list[str]) -> int:
    """Print what is wrong, and the number of links; 1 if one leads nowhere."""
    lines = list(_lines(Path(arguments[0]) if arguments else HTML))
    print("\n".join(lines))
    return int(len(lines) > 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
