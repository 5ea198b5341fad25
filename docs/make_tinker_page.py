"""Write tinker-surface.md: every name of the official Tinker SDK, beside that of lossbook.integrations.tinker. `make docs` runs it.

    python docs/make_tinker_page.py

Both packages' signatures are read; tinker-surface.toml has the reason of each difference, and the differences that no signature
shows. Needs the extra `peers`. tests/docs/test_tinker_surface.py fails while the page is not current.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import importlib
import inspect
import re
import tomllib
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

FOLDER = Path(__file__).resolve().parent
PAGE, REASONS = FOLDER / "tinker-surface.md", FOLDER / "tinker-surface.toml"
#: Classes that no program makes itself.
MADE_BY_CALLS = {"TrainingClient", "SamplingClient", "BackcompatTrainingClientFuture", "BackcompatSamplingClientFuture"}
#: Bases whose methods are not Tinker's.
_FOREIGN = (object, BaseException, Exception, FutureWarning, pydantic.BaseModel, typing.Generic)


def main() -> None:
    """Compare, and write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def packages() -> tuple[Any, Any]:
    """The official SDK, and lossbook's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("tinker"), importlib.import_module("lossbook.integrations.tinker")


# --- what a package has -----------------------------------------------------------------------------------------------


def surface(package: Any) -> dict[str, str]:
    """Each public name, with what it takes and its defaults: `TrainingClient.forward(data, loss_fn, loss_fn_config=None)`."""
    entries: dict[str, str] = {}
    for name in sorted(package.__all__):
        entries.update(_entries(name, getattr(package, name)))
    for name in sorted(_public(package.types)):
        if name not in package.__all__:
            entries.update(_entries(f"types.{name}", getattr(package.types, name)))
    for name in sorted(package.auth.__all__):
        entries.update(_entries(f"auth.{name}", getattr(package.auth, name)))
    retries = importlib.import_module(f"{package.__name__}.lib.retry_handler")
    entries.update(_entries("lib.retry_handler.RetryConfig", retries.RetryConfig))
    return entries


def _public(module: Any) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name not in ("annotations", "re", "sys")
    }


def _entries(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if name == "Timeout":
        yield name, value.__init__.__module__.split(".")[0]
    elif inspect.isclass(value) and not isinstance(value, types.GenericAlias) and value.__module__ != "builtins":
        yield name, _made(value)
        yield from ((f"{name}.{member}", text) for member, text in sorted(_members(value).items()))
    elif inspect.isfunction(value):
        yield name, _parameters(value)
    elif isinstance(value, types.ModuleType):
        yield name, "module"
    else:
        yield name, _alias(value)


def _made(kind: Any) -> str:
    """How an object is made: its fields or parameters and their defaults."""
    if issubclass(kind, pydantic.BaseModel):
        fields = kind.model_fields.items()
        return f"(*, {', '.join(sorted(_field(name, field) for name, field in fields))})" if fields else "()"
    if hasattr(kind, "__total__"):  # a TypedDict
        return f"({', '.join(sorted(kind.__annotations__))})"
    if issubclass(kind, enum.Enum):  # Python's versions differ in what they say of its parameters
        return "(value)"
    if kind.__name__ in MADE_BY_CALLS or not inspect.isfunction(inspect.unwrap(kind.__init__)):
        return ""
    return _parameters(kind)


def _field(name: str, field: Any) -> str:
    return name if field.is_required() else f"{name}={field.get_default(call_default_factory=True)!r}"


def _members(kind: Any) -> dict[str, str]:
    """Public methods and properties by name, of the class and those bases of it that are Tinker's."""
    validators = set()
    if issubclass(kind, pydantic.BaseModel):
        marked = kind.__pydantic_decorators__
        groups = [getattr(marked, field.name) for field in dataclasses.fields(marked)]
        validators = {name for group in groups if isinstance(group, dict) for name in group}
    members = {}
    for base in reversed([base for base in kind.__mro__ if base not in _FOREIGN]):
        for name, value in vars(base).items():
            plain = inspect.unwrap(getattr(value, "__func__", value))
            if name.startswith("_") or name in validators:
                continue
            if inspect.isfunction(plain):
                members[name] = _parameters(getattr(kind, name))
            elif isinstance(value, property) or type(value).__name__ == "cached_property":
                members[name] = "property"
    return members


def _parameters(function: Callable[..., Any]) -> str:
    """`(a, *, b=1)`, without types."""
    signature = inspect.signature(function)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    named = [each for each in plain if each.name != "self"]
    text = str(signature.replace(parameters=named, return_annotation=inspect.Signature.empty))
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)


def _alias(value: Any) -> str:
    """The members of a union or the values of a Literal; of another type its name."""
    parts = typing.get_args(value)
    if not parts or (callable(typing.get_origin(value)) and typing.get_origin(value).__module__ == "collections.abc"):
        return getattr(value, "__name__", repr(value))
    inner = [part for part in parts if isinstance(part, type) or typing.get_args(part) or isinstance(part, str | int)]
    return " | ".join(sorted({_alias(part) if not isinstance(part, str | int) else repr(part) for part in inner}))


def modules(package: Any) -> list[str]:
    """Dotted names below the package of all its modules, but its tests."""
    folder = Path(package.__path__[0])
    paths = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py")]
    names = {".".join(path.parts).removesuffix("__init__").rstrip(".") for path in paths}
    return sorted(name for name in names if name and not name.endswith("_test"))


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """A name: what Tinker has, what is here (None: nothing), why where they differ, and why it is refused when it is used."""

    name: str
    tinker: str
    here: str | None
    why: str = ""
    refused: str = ""

    @property
    def differs(self) -> bool:
        """Whether it is there in another form."""
        return self.here not in (None, self.tinker)


def compared(reasons: Mapping[str, str], refused: Mapping[str, str]) -> list[Row]:
    """Every public name of the SDK. Raises LookupError for a difference without a reason, and for a reason without one."""
    sdk, ours = packages()
    theirs, here = surface(sdk), surface(ours)
    rows = [Row(name, text, here.get(name)) for name, text in theirs.items() if not _within_missing(name, here)]
    rows = [_as_the_client(row, theirs) for row in rows]
    missing = missing_modules(sdk)
    rows += [Row(f"module {name}", "", None if name in missing else "") for name in modules(sdk)]
    used: set[str] = set()
    explained = [_explained(row, reasons, refused, used) for row in rows]
    if idle := [pattern for pattern in (*reasons, *refused) if pattern not in used]:
        raise LookupError(f"{REASONS.name} has reasons for what does not differ: {', '.join(idle)}")
    return explained


def missing_modules(sdk: Any) -> set[str]:
    """Modules of the SDK that are not there under `import tinker`."""
    alias = importlib.import_module("lossbook.integrations.tinker.alias")
    return {name for name in modules(sdk) if not alias.has(f"tinker.{name}")}


def _within_missing(name: str, here: Mapping[str, str]) -> bool:
    """Whether it is a member of a class that is not there: one row says so for all."""
    owner = name.rpartition(".")[0]
    return owner not in ("", "types", "auth", "lib.retry_handler") and owner not in here


def _as_the_client(row: Row, theirs: Mapping[str, str]) -> Row:
    """A future of a client hands its calls on, with whatever arguments: the client's own parameters count."""
    owner, _, method = row.name.partition(".")
    client = owner.removeprefix("Backcompat").removesuffix("Future")
    return (
        row
        if client == owner or row.tinker != "(*args, **kwargs)"
        else dataclasses.replace(row, tinker=theirs[f"{client}.{method}"])
    )


def _explained(row: Row, reasons: Mapping[str, str], refused: Mapping[str, str], used: set[str]) -> Row:
    if row.here == row.tinker:
        return dataclasses.replace(row, refused=_first(row.name, refused, used))
    why = _first(row.name, reasons, used)
    if not why:
        raise LookupError(
            f"{row.name}: Tinker has {row.tinker!r}, here is {row.here!r}; {REASONS.name} does not say why"
        )
    return dataclasses.replace(row, why=why)


def _first(name: str, texts: Mapping[str, str], used: set[str]) -> str:
    """The text of the first pattern that the name fits, which is then used; "" if there is none."""
    fitting = next((pattern for pattern in texts if fnmatch.fnmatchcase(name, pattern)), None)
    used |= set() if fitting is None else {fitting}
    return "" if fitting is None else texts[fitting]


# --- the page ---------------------------------------------------------------------------------------------------------

HEAD = """<!-- Made by docs/make_tinker_page.py (`make docs`) from both packages and tinker-surface.toml: change those, not this page. -->

# Tinker's API in one process, name by name

`import lossbook.integrations.tinker as tinker`, or `lossbook tinker SCRIPT.py ARGS` for a program that says `import tinker` and cannot be
changed. This page compares it with the `tinker` package {version}: {counts}.

- **The same** means: the same name, the same parameters in the same order with the same defaults, the same fields, the same members of
  a union. Types of parameters are not compared.
- tests/docs/test_tinker_surface.py holds this page to both packages, and every name that tinker-cookbook 0.6.1 uses to what is here.
- What no signature shows: [what differs](tinker.md#what-differs), [what is refused](tinker.md#what-is-refused), and
  [of types and futures](#behaviour-of-types-and-futures) below.

"""


def page() -> str:
    """The whole page. Raises LookupError as `compared` does."""
    texts = tomllib.loads(REASONS.read_text(encoding="utf-8"))
    rows = compared(texts["reasons"], texts["refused"])
    names, files = ([row for row in rows if row.name.startswith("module ") == is_file] for is_file in (False, True))
    counts = [
        f"{sum(row.here == row.tinker for row in names)} names are the same, of which {sum(bool(row.refused) for row in names)} are "
        "refused when they are used",
        f"{sum(row.differs for row in names)} differ",
        f"{sum(row.here is None for row in names)} are missing",
    ]
    sdk, _ = packages()
    head = HEAD.format(version=sdk.__version__, counts=", ".join(counts))
    parts = [head, _different(names), _missing(names, files), _behaviour(texts["behaviour"]), _same(names)]
    return "".join(parts)


def _different(rows: list[Row]) -> str:
    lines = [
        f"| `{row.name}` | {_cell(row.tinker)} | {_cell(str(row.here))} | {row.why} |\n" for row in rows if row.differs
    ]
    return "## Different\n\n| name | tinker | here | why |\n|---|---|---|---|\n" + "".join(lines) + "\n"


def _missing(names: list[Row], files: list[Row]) -> str:
    text = "## Missing\n\n| what | why |\n|---|---|\n"
    for rows in (names, files):
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if row.here is None:
                by_reason.setdefault(row.why, []).append(row.name)
        text += "".join(f"| {_listed(those)} | {why} |\n" for why, those in by_reason.items())
    return text + "\n"


def _listed(names: list[str]) -> str:
    if names[0].startswith("module "):
        return "modules " + ", ".join(f"`{name.removeprefix('module ')}`" for name in names)
    return ", ".join(f"`{name}`" for name in names)


def _behaviour(entries: list[dict[str, str]]) -> str:
    lines = [f"| {each['where']} | {each['tinker']} | {each['here']} |\n" for each in entries]
    return "## Behaviour of types and futures\n\n| where | tinker | here |\n|---|---|---|\n" + "".join(lines) + "\n"


def _same(rows: list[Row]) -> str:
    lines = [f"| `{row.name}` | {_cell(row.tinker)} | {row.refused} |\n" for row in rows if row.here == row.tinker]
    return "## The same\n\n| name | what it takes | refused when it is used |\n|---|---|---|\n" + "".join(lines)


def _cell(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    main()
