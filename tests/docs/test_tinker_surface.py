"""docs/tinker-surface.md says what both packages have, and nothing that the cookbook uses is missing."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lossbook.integrations import tinker
from lossbook.integrations.tinker.alias import has

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "make_tinker_page.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    pytest.importorskip("tinker", reason="the official SDK comes with lossbook[dev]")
    spec = importlib.util.spec_from_file_location("make_tinker_page", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(script: ModuleType) -> None:
    assert script.page() == script.PAGE.read_text(encoding="utf-8"), "run docs/make_tinker_page.py"


def test_a_difference_needs_a_reason_and_a_reason_a_difference(script: ModuleType) -> None:
    texts = tomllib.loads(script.REASONS.read_text(encoding="utf-8"))
    reasons, refused = texts["reasons"], texts["refused"]
    with pytest.raises(LookupError, match="OptimParams: Tinker has"):
        script.compared({pattern: why for pattern, why in reasons.items() if pattern != "OptimParams"}, refused)
    with pytest.raises(LookupError, match="what does not differ: Datum"):
        script.compared({"Datum": "who knows", **reasons}, refused)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (lambda self, a, *, b=1: None, "(a, *, b=1)"),
        (lambda kind=ValueError: None, "(kind=ValueError)"),
    ],
)
def test_parameters_are_shown_without_types(script: ModuleType, value: Any, text: str) -> None:
    assert script._parameters(value) == text


# --- the cookbook -----------------------------------------------------------------------------------------------------


@cache
def cookbook() -> dict[Path, ast.Module]:
    """The cookbook's sources."""
    spec = importlib.util.find_spec("tinker_cookbook")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tinker-cookbook is not installed")
    paths = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def uses(source: ast.Module) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Each dotted name below `tinker` in a file, with its line and the keywords that it is called with."""
    names = {}
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "tinker":
                    names[alias.asname or "tinker"] = alias.name if alias.asname else "tinker"
                    yield alias.name, node.lineno, ()
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinker" and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node.lineno, ()
    for node in ast.walk(source):
        called = node.func if isinstance(node, ast.Call) else node
        if isinstance(called, ast.Attribute | ast.Name):
            first, _, rest = ast.unparse(called).partition(".")
            if first in names and "(" not in rest:
                keywords = tuple(each.arg for each in node.keywords if each.arg) if isinstance(node, ast.Call) else ()
                yield f"{names[first]}.{rest}".rstrip("."), called.lineno, keywords


def resolved(name: str) -> Any:
    """What a dotted name below `tinker` means here. Raises AttributeError, or ImportError where it is a module."""
    value: Any = tinker
    for depth, part in enumerate(name.split(".")[1:], start=1):
        path = ".".join(name.split(".")[: depth + 1])
        if not hasattr(value, part) and inspect.ismodule(value) and has(path):
            value = importlib.import_module(path.replace("tinker", tinker.__name__, 1))
        else:
            value = getattr(value, part)
    return value


@pytest.mark.slow
def test_nothing_that_the_cookbook_uses_is_missing() -> None:
    problems, count = [], 0
    for path, source in cookbook().items():
        for name, line, keywords in uses(source):
            count += 1
            try:
                value = resolved(name)
                parameters = inspect.signature(value).parameters if keywords else {}
            except (AttributeError, ImportError) as error:
                problems.append(f"{path.name} line {line}: {name}: {error}")
                continue
            problems += [f"{path.name} line {line}: {name}({word}=...)" for word in keywords if word not in parameters]
    assert count > 1000  # 0.6.1 uses about 1,400
    assert not problems, "\n".join(problems)


@pytest.mark.slow
def test_every_method_of_a_client_that_the_cookbook_calls_is_there(script: ModuleType) -> None:
    clients = (
        "ServiceClient",
        "TrainingClient",
        "SamplingClient",
        "RestClient",
        "AdminClient",
        "APIFuture",
        "TensorData",
    )
    called = {
        node.attr for source in cookbook().values() for node in ast.walk(source) if isinstance(node, ast.Attribute)
    }
    sdk, ours = map(script.surface, script.packages())
    asked = {name for name in sdk if name.split(".")[0] in clients and name.split(".")[-1] in called - {*clients}}
    assert len(asked) > 30  # 36 of 0.6.1
    assert asked - ours.keys() <= {"ServiceClient.holder", "SamplingClient.create"}  # other objects have one too
