"""The API reference: a page per part of lossbook, written before each build from the public names, which `__all__` lists.

A docstring is plain text, as a reader of the source sees it: `code` in backticks, a line per tensor or argument, lists. Here it
becomes reStructuredText. A type that is named but has no entry of its own, such as torch.Tensor, is shown without a link; a name
that cannot be imported is a warning.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
CODE = "https://github.com/lossbook/lossbook"


@dataclass(frozen=True)
class Part:
    """A section of a page: the names of a module; `()` for all its public names."""

    module: str
    names: tuple[str, ...] = ()
    but: tuple[str, ...] = ()


_CLIENTS = ("ServiceClient", "TrainingClient", "SamplingClient", "ReferenceClient")
_RESPONSES = ("ForwardBackwardOutput", "OptimStepResponse", "SampleResponse", "SampledSequence")
#: Page -> title, what it says first, its parts. A name is on the first page that has it.
PAGES: dict[str, tuple[str, str, tuple[Part, ...]]] = {
    "lossbook": (
        "lossbook",
        "What ``import lossbook as lb`` gives, but for the clients, which have a page of their own.",
        (Part("lossbook", but=(*_CLIENTS, *_RESPONSES, "seed_everything")),),
    ),
    "clients": (
        "Clients",
        "Training, sampling and what the calls return. How they run together is told in :doc:`/clients`.",
        (Part("lossbook", (*_CLIENTS, *_RESPONSES, "seed_everything")), Part("lossbook.trainer")),
    ),
    "losses": (
        "lossbook.losses",
        "For those who write losses. Each registered loss has its section in :doc:`/losses/README`.",
        (
            Part("lossbook.losses"),
            Part("lossbook.losses.stats"),
            Part("lossbook.losses.advantages"),
            Part("lossbook.losses.returns"),
        ),
    ),
    "testing": (
        "lossbook.testing",
        "The conformance kit: one call holds a loss, a model or an advantage to the laws that each must obey.",
        (Part("lossbook.testing"), Part("lossbook.losses.testing")),
    ),
    "datums": (
        "lossbook.datums",
        "Sequences of tokens, what a loss reads about them, and the files that they come from: :doc:`/data`.",
        (Part("lossbook.datums"), Part("lossbook.datums.errors")),
    ),
    "integrations": (
        "lossbook.integrations",
        "A loss of ours in other trainers: :doc:`/trainers`. ``lossbook.integrations.tinker`` has the names of the Tinker SDK, which "
        ":doc:`/tinker-surface` lists.",
        tuple(
            Part(f"lossbook.integrations.{name}")
            for name in ("transformers", "trl", "sentence_transformers", "verl", "skyrl", "prime_rl")
        ),
    ),
    "recipes": (
        "Recipes in Python",
        "Each recipe is a settings model and ``main(config)``, which returns the last numbers. The fields are the flags of "
        ":doc:`/cli`.",
        tuple(
            Part(f"lossbook.cookbook.{name}", (config, "main"))
            for name, config in {
                "sft": "SFTConfig",
                "dpo": "DPOConfig",
                "rl": "RLConfig",
                "distill": "DistillConfig",
                "embed": "EmbedConfig",
                "reward": "RewardConfig",
            }.items()
        ),
    ),
}


# The pages.


def _write_pages(app: Sphinx) -> None:
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    shown: set[int] = set()
    texts = {page: "\n".join(_page(*content, shown)) for page, content in PAGES.items()}
    for page, text in texts.items():
        path = folder / f"{page}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # else Sphinx would read it anew
            path.write_text(text, encoding="utf-8")


def _page(title: str, says: str, parts: Iterable[Part], shown: set[int]) -> Iterator[str]:
    yield from (title, "=" * len(title), "", says, "")
    several = len({part.module for part in parts}) > 1
    for part in parts:
        module = importlib.import_module(part.module)
        names = [name for name in part.names or _public(module) if name not in part.but]
        entries = [(name, getattr(module, name)) for name in names]
        entries = [(name, value) for name, value in entries if id(value) not in shown]
        shown |= {id(value) for _, value in entries}
        if several:
            yield from (part.module, "-" * len(part.module), "")
            yield from _summary(module) if "." in part.module else ()
        for name, value in entries:
            yield from _entry(part.module, name, value)


def _public(module: ModuleType) -> list[str]:
    listed = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in listed if not isinstance(getattr(module, name), ModuleType)]


def _summary(module: ModuleType) -> Iterator[str]:
    yield from as_rst((inspect.getdoc(module) or "").splitlines())


def _entry(module: str, name: str, value: Any) -> Iterator[str]:
    kind = "class" if inspect.isclass(value) else "function" if inspect.isroutine(value) else "data"
    if inspect.isclass(value) and issubclass(value, Exception):
        kind = "exception"
    yield f".. auto{kind}:: {module}.{name}"
    if kind == "class":
        yield "   :members:"
        yield "   :exclude-members: model_config, model_post_init"
    if kind == "data":
        yield "   :no-value:"
    yield ""


# Docstrings.


_ALIGNED = re.compile(r"\S {2,}\S")
_BULLET = re.compile(r"(?:[-*]|\d+\.) ")


def as_rst(lines: Iterable[str]) -> Iterator[str]:
    """A docstring's lines as reStructuredText: prose, lists, and what is aligned by spaces as it stands."""
    for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        rows = block.split("\n")
        if any(row.startswith("    ") for row in rows) or any(_ALIGNED.search(row.strip()) for row in rows):
            yield from ("::", "", *(f"   {row}" for row in rows), "")
        elif any(_BULLET.match(row) for row in rows):
            yield from _list(rows)
        else:
            yield from (*(_escaped(row.strip()) for row in _joined(rows)), "")


def _joined(rows: list[str]) -> list[str]:
    """One line, so that code in backticks is not broken over two."""
    return [" ".join(row.strip() for row in rows)]


def _list(rows: list[str]) -> Iterator[str]:
    items: list[list[str]] = [[]]
    for row in rows:
        if _BULLET.match(row):
            items.append([])
        items[-1].append(row)
    for item in filter(None, items):
        bullet = _BULLET.match(item[0])
        text = _escaped(" ".join(row.strip() for row in item)[len(bullet[0]) if bullet else 0 :])
        yield from (f"- {text}" if bullet else text, "")


def _escaped(text: str) -> str:
    """Text in which only `code` is markup."""
    parts = re.split(r"`+([^`]+)`+", text)
    parts[::2] = [re.sub(r"([\\*|`]|_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part.strip()}``\\ " for part in parts[1::2]]
    return "".join(parts).strip()


def _process(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _plain(app: Sphinx, env: Any, node: nodes.Element, shown: nodes.Element) -> nodes.Element | None:
    """The text of a reference to a thing that exists but is not on these pages."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    named = [target, f"{node.get('py:module')}.{target}", f"builtins.{target}", f"typing.{target}"]
    return shown if any(_exists(name) for name in named) else None


def _exists(name: str) -> bool:
    try:
        return pydoc.locate(name) is not None
    except pydoc.ErrorDuringImport:
        return False


def source_address(domain: str, info: dict[str, str]) -> str | None:
    """Where a name is written, for `linkcode`: its file and lines at the code's address."""
    try:
        value: Any = importlib.import_module(info["module"])
        for part in info["fullname"].split("."):
            value = getattr(value, part)
        value = inspect.unwrap(value.fget if isinstance(value, property) else value)
        lines, first = inspect.getsourcelines(value)
        path = Path(inspect.getsourcefile(value) or "").relative_to(ROOT)
    except (AttributeError, ImportError, OSError, TypeError, ValueError):
        return None
    return f"{CODE}/blob/main/{path}#L{first}-L{first + len(lines) - 1}"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _process)
    app.connect("missing-reference", _plain)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
