"""The map of the house, and its rules: who imports whom, how long a file is, and which words name things.

Every import counts: at the top of a file, inside a function, under TYPE_CHECKING, and through importlib.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: The rooms of each part, lowest floor first: folders, and files that lie beside them. A room imports itself and the
#: floors below it, never a room of its own floor. Parts stand in order too: each may import the parts before it.
ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "datums": (
        ("errors", "inputs", "display", "choices", "lazy"),
        ("keywords",),
        ("tensors", "extras", "disk", "routing"),
        ("types",),
        ("checks",),
        ("builders",),
        ("chat",),
        ("files",),
    ),
    "losses": (
        ("stats", "reductions", "ids"),
        ("spec",),
        ("batch", "math"),
        ("advantages", "trace"),
        ("returns",),
        ("loss",),
        ("registry",),
        ("family",),
        ("supervised", "policy", "preference", "distillation", "embedding", "ranking", "value", "variants"),
        ("cards",),
        ("testing",),
    ),
    "trainer": (
        ("responses", "device", "ranks", "choices"),
        ("transfer", "shards"),
        ("head", "optim"),
        ("model",),
        ("routing",),
        ("sharding", "packing", "checkpoint", "tensors"),
        ("engine", "sampling"),
        ("training",),
        ("workers",),
        ("clients",),
        ("conformance",),
    ),
    "integrations": (
        ("tinker", "requirements", "refusal", "per_datum"),
        ("accumulated", "remote", "serve", "conform"),
        ("transformers", "trl", "verl", "skyrl", "prime_rl", "sentence_transformers"),
    ),
    "cookbook": (
        ("extras", "redaction", "terminal"),
        ("settings",),
        ("run", "confined", "pages", "scaffold"),
        ("tasks", "steps"),
        ("environments",),
        ("rollouts", "preferences", "distillation", "embeddings"),
        ("rerankers",),
        ("inspect",),
        ("diagnose", "export"),
        ("reports", "talk", "compare"),
        ("sweeps",),
        ("loop",),
        ("sft", "dpo", "rl", "distill", "embed", "rerank", "quickstart"),
        ("reward",),
        ("doctor", "commands"),
        ("usage",),
        ("cli",),
    ),
}
MAX_MODULE, MAX_FUNCTION, MAX_FOLDER = 300, 40, 13
#: Modules that import others by a name worked out when they run; nothing inside the package imports them.
DOORS = ("losses/testing/__init__.py", "cookbook/cli.py", "datums/lazy.py")
#: Identifiers that the house has another word for.
WORDS = {
    "found": "what it is: metrics, gradients, datums, problems, ...",
    "covers": "active (LossLike.covers is kept for users)",
    "covered": "active",
    "Prepared": "BoundLoss",
    "Subject": "LossUnderTest",
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a folder's `__init__.py` is `folder.__init__`."""
    paths = sorted(path for part in ROOMS for path in (ROOT / part).rglob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def resolved(target: str, known: dict[str, Path]) -> str | None:
    """The module that a dotted name stands for."""
    return next((name for name in (target, f"{target}.__init__") if name in known), None)


def imports(name: str, source: ast.Module, known: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """(module, line) for every module of the package that `source` imports relatively."""
    package = name.split(".")[:-1]
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ())]
            for alias in node.names:
                target = resolved(".".join([*base, alias.name]), known) or resolved(".".join(base), known)
                if target not in (None, name):
                    yield target, node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            path = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            dots = len(path) - len(path.lstrip("."))
            target = (
                resolved(".".join([*package[: len(package) - dots + 1], path.lstrip(".")]), known) if dots else None
            )
            if target is not None:
                yield target, node.lineno


def room_of(name: str) -> tuple[str, str]:
    """(part, room): a folder of the part, or a file that lies beside the folders. A part's own `__init__` is its door."""
    part, room, *_ = name.split(".")
    return part, room


def floor_of(part: str, room: str) -> int:
    """How high a room lies; a part's door lies above all."""
    floors = [number for number, rooms in enumerate(ROOMS[part]) if room in rooms]
    return floors[0] if floors else len(ROOMS[part])


def upward_imports(name: str, source: ast.Module, known: dict[str, Path]) -> Iterator[str]:
    """A sentence for each import of a room that does not lie below."""
    part, room = room_of(name)
    for target, line in imports(name, source, known):
        other, its_room = room_of(target)
        if other != part or its_room == room or room == "__init__":
            continue
        if its_room == "__init__":
            yield f"{name} line {line}: imports through the door of {part}/; import from the room that holds the name"
        elif floor_of(part, its_room) >= floor_of(part, room):
            yield (
                f"{name} line {line}: {part}/{room} imports {part}/{its_room}, which does not lie below it. Move what "
                f"both need to a lower room, or hand it over as an argument. From below: {floors(part)}"
            )


def floors(part: str) -> str:
    return " <- ".join(", ".join(rooms) for rooms in ROOMS[part])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    order: list[str] = []
    seen: set[str] = set()

    def walk(start: str, edges: dict[str, set[str]], out: list[str]) -> None:
        stack = [(start, iter(sorted(edges.get(start, ()))))]
        seen.add(start)
        while stack:
            node, rest = stack[-1]
            following = next((one for one in rest if one not in seen), None)
            if following is None:
                stack.pop()
                out.append(node)
            else:
                seen.add(following)
                stack.append((following, iter(sorted(edges.get(following, ())))))

    for node in graph:
        if node not in seen:
            walk(node, graph, order)
    back: dict[str, set[str]] = {}
    for node, targets in graph.items():
        for target in targets:
            back.setdefault(target, set()).add(node)
    seen.clear()
    groups: list[list[str]] = []
    for node in reversed(order):
        if node not in seen:
            group: list[str] = []
            walk(node, back, group)
            groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


def long_functions(source: ast.Module) -> Iterator[tuple[str, int, int]]:
    """(name, line, lines without docstring) of functions that are too long."""
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if ast.get_docstring(node) is not None else None
            docstring = 0 if first is None else (first.end_lineno or 0) - first.lineno + 1
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            if lines > MAX_FUNCTION:
                yield node.name, node.lineno, lines


def identifiers(source: ast.Module) -> Iterator[tuple[str, int]]:
    """Each name that a module gives to something, with its line."""
    for node in ast.walk(source):
        if isinstance(node, ast.Name | ast.arg | ast.FunctionDef | ast.ClassDef):
            name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else node.name
            yield name, node.lineno


@pytest.mark.parametrize("part", ROOMS)
def test_every_file_lies_in_a_room(part: str) -> None:
    known = {room for rooms in ROOMS[part] for room in rooms} | {"__init__"}
    homeless = sorted(
        {f"{part}/{room_of(name)[1]}" for name in modules() if name.startswith(f"{part}.")}
        - {f"{part}/{room}" for room in known}
    )
    assert not homeless, f"{', '.join(homeless)}: give each a floor in ROOMS, in this test, or move it into a room"
    empty = sorted(room for room in known if not any(room_of(name) == (part, room) for name in modules()))
    assert not empty, f"{part} has no {', '.join(empty)} any more: take them out of ROOMS, in this test"


def test_the_map_in_contributing_has_every_room() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [room for part in ROOMS.values() for floor in part for room in floor]
    missing = [room for room in rooms if not any(f"`{form}`" in page for form in (room, f"{room}/", f"{room}.py"))]
    assert not missing, f"CONTRIBUTING.md, section The map, does not name {', '.join(missing)}"


def test_rooms_import_only_what_lies_below_them() -> None:
    problems = [one for name in modules() for one in upward_imports(name, tree(name), modules())]
    assert not problems, "\n".join(problems)


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {target for target, _ in imports(name, tree(name), modules())} for name in modules()}
    problems = [" <-> ".join(group) for group in circles(graph)]
    assert not problems, "move what they share into a module below all of them:\n" + "\n".join(problems)


def test_only_doors_import_modules_by_a_computed_name() -> None:
    problems = [
        f"{file} line {node.lineno}: write an import statement, so that tools can follow it"
        for name, path in modules().items()
        if (file := path.relative_to(ROOT).as_posix()) not in DOORS
        for node in ast.walk(tree(name))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module")
        if len(node.args) > 1 and not isinstance(node.args[0], ast.Constant)
    ]
    assert not problems, "\n".join(problems)


def test_modules_are_short_enough_to_read() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    problems = [
        f"{name} has {lines} lines: split it by subject, at most {MAX_MODULE} each"
        for name, lines in lengths.items()
        if lines > MAX_MODULE
    ]
    assert not problems, "\n".join(problems)


def test_functions_are_short_enough_to_read() -> None:
    problems = [
        f"{name} line {line}: {function} has {count} lines without its docstring, at most {MAX_FUNCTION}: "
        "give a part of it a name"
        for name in modules()
        for function, line, count in long_functions(tree(name))
    ]
    assert not problems, "\n".join(problems)


def test_no_folder_is_crowded() -> None:
    counts = Counter(path.parent for name, path in modules().items() if not name.endswith("__init__"))
    problems = [
        f"{folder.relative_to(ROOT)} has {count} files, at most {MAX_FOLDER}: make a room of those that belong together"
        for folder, count in counts.items()
        if count > MAX_FOLDER
    ]
    assert not problems, "\n".join(problems)


def test_one_word_names_one_thing() -> None:
    problems = [
        f"{name} line {line}: {word!r}: the word here is {WORDS[word]}"
        for name in modules()
        for word, line in identifiers(tree(name))
        if word in WORDS and (word, name) != ("covers", "losses.loss.loss")
    ]
    assert not problems, "\n".join(problems)


HOUSE = {
    name: Path(name)
    for name in ("losses.stats", "losses.batch.pack", "losses.loss.loss", "losses.loss.bound", "losses.__init__")
}


@pytest.mark.parametrize(
    ("name", "source", "sentence"),
    [
        ("losses.batch.pack", "from ..loss.loss import Loss", "losses/batch imports losses/loss"),
        ("losses.batch.pack", "def f():\n    from ..loss import loss", "line 2: losses/batch imports losses/loss"),
        ("losses.batch.pack", "if TYPE_CHECKING:\n    from ..loss.loss import Loss", "line 2: losses/batch imports"),
        (
            "losses.batch.pack",
            "importlib.import_module('..loss.loss', __package__)",
            "losses/batch imports losses/loss",
        ),
        ("losses.batch.pack", "from .. import get_loss", "through the door"),
    ],
)
def test_an_import_upwards_is_named(name: str, source: str, sentence: str) -> None:
    (problem,) = upward_imports(name, ast.parse(source), HOUSE)
    assert sentence in problem


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("losses.loss.loss", "from ..batch.pack import pack\nfrom .. import stats\nfrom .bound import BoundLoss"),
        ("losses.__init__", "from .loss.loss import Loss"),
    ],
)
def test_an_import_downwards_is_free(name: str, source: str) -> None:
    assert not list(upward_imports(name, ast.parse(source), HOUSE))


def test_a_circle_is_found_through_any_number_of_modules() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_a_docstring_does_not_count_as_lines_of_a_function() -> None:
    body = "\n".join(f"    x = {number}" for number in range(MAX_FUNCTION))
    assert [count for _, _, count in long_functions(ast.parse(f"def f():\n{body}"))] == [MAX_FUNCTION + 1]
    docstring = '    """' + "line\n" * 50 + '    """'
    assert not list(long_functions(ast.parse(f"def f():\n{docstring}\n    return 1")))
