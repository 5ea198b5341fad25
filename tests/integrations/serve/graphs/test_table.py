"""The table of operations: its names are those on the wire, its documents are made from it, and none of them is dangerous."""

from __future__ import annotations

import functools
import math
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional

from lossbook.integrations.serve.graphs.kinds import DROPPED, KINDS
from lossbook.integrations.serve.graphs.table import FUNCTIONS, METHODS, OPERATIONS, listed

from .encoding import custom_loss

PAGE = Path(__file__).resolve().parents[4] / "docs" / "serve" / "custom-losses.md"
MODULES = {"torch": torch, "math": math, "operator": operator}


def public(name: str) -> Any:
    """What people call by that name."""
    module, *parts = name.split(".")
    return functools.reduce(getattr, parts, MODULES[module])


def test_the_sdk_sends_each_function_under_a_name_of_the_table() -> None:
    for one in OPERATIONS:
        if not one.functions or one.name == "getattr":
            continue
        graph = torch.fx.Graph()
        required = [f"a{i}" for i, parameter in enumerate(one.parameters) if not parameter.optional]
        graph.output(graph.call_function(public(one.name), tuple(graph.placeholder(name) for name in required)))
        handle = custom_loss.LossHandle("f", (), "session", torch.fx.GraphModule(torch.nn.Module(), graph))
        sent = custom_loss.encode_graph(handle).nodes[-2].target
        assert FUNCTIONS.get(sent) is one, f"{one.name} is sent as {sent}"


def test_every_method_is_one_of_tensors_and_none_changes_its_tensor() -> None:
    for name in METHODS:
        assert callable(getattr(torch.Tensor, name))
        assert not name.endswith("_")


def test_no_name_stands_for_two_operations() -> None:
    functions = [name for one in OPERATIONS for name in one.functions]
    methods = [name for one in OPERATIONS for name in one.methods]
    assert len(functions) == len(FUNCTIONS)
    assert len(methods) == len(METHODS)


def test_every_argument_has_a_kind_and_what_has_no_effect_is_given_by_name() -> None:
    for one in OPERATIONS:
        for parameter in one.parameters:
            assert parameter.kind.startswith("'") or parameter.kind in KINDS, one.name
            assert parameter.by_name or parameter.kind not in DROPPED, one.name


@pytest.mark.parametrize(
    "word", ["empty", "rand", "load", "save", "out", "_grad", "stride", "storage", "item", "dropout"]
)
def test_nothing_in_the_table_reads_memory_files_or_chance(word: str) -> None:
    names = {name.rpartition(".")[2] for name in (*FUNCTIONS, *METHODS)}
    assert not {name for name in names if word in name and name not in ("outer", "getitem")}


def test_the_page_lists_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    lines = [f"| `{module}` | {' '.join(f'`{name}`' for name in names)} |" for module, names in listed().items()]
    table = "\n".join(lines)
    assert table in page, f"write this table into {PAGE.name}:\n{table}"
