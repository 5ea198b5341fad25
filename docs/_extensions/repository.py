"""Pages that read the same on GitHub and on the site: links to what is outside docs/, and pages whose text is kept elsewhere.

On GitHub a link is relative to the file that it is in. On the site, a link to a file or folder of the repository that is no
page becomes a link to the code's address; a page named in `repository_pages` shows the text of a file outside docs/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pygments.lexers.data import JsonLexer
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_FENCED = re.compile(r"^(`{3,}).*?^\1`*$", re.DOTALL | re.MULTILINE)
_TARGET = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")


def on_site(text: str, place: Path, page: str, pages: dict[str, str], code: str) -> str:
    """`text`, kept in the file `place`, with the links that it needs as the page `page` of the site."""

    def amended(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        path, mark, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return link[0]
        there = Path(os.path.normpath(place.parent / path))
        shown = {ROOT / file: DOCS / f"{name}.md" for name, file in pages.items()}.get(there, there)
        if picture or (shown.suffix == ".md" and shown.is_relative_to(DOCS)):
            return f"{picture}{words}({os.path.relpath(shown, (DOCS / page).parent)}{mark}{anchor})"
        kind = "tree" if there.is_dir() else "blob"
        return f"{words}({code}/{kind}/main/{there.relative_to(ROOT)}{mark}{anchor})"

    parts, end = [], 0
    for block in _FENCED.finditer(text):
        parts += [_TARGET.sub(amended, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, _TARGET.sub(amended, text[end:])])


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    file = Path(app.env.doc2path(page))
    if file.suffix != ".md":
        return
    pages: dict[str, str] = app.config.repository_pages
    if page in pages:
        file = ROOT / pages[page]
        source[0] = file.read_text(encoding="utf-8")
        app.env.note_dependency(str(file))
    source[0] = on_site(source[0], file, page, pages, app.config.repository_address)


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_config_value("repository_address", "", "env", str)
    app.add_config_value("repository_pages", {}, "env", dict)
    app.connect("source-read", _read)
    app.add_lexer("jsonl", JsonLexer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
