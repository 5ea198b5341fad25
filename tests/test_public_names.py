"""The public names of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import lossbook


@pytest.mark.parametrize("name", lossbook.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(lossbook, name) is not None
    assert name in dir(lossbook)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lossbook' has no attribute 'no_such_name'"):
        _ = lossbook.no_such_name


@pytest.mark.parametrize("package", [lossbook, lossbook.datums, lossbook.trainer], ids=["root", "datums", "trainer"])
def test_type_checkers_and_python_read_each_lazy_name_from_the_same_module(package: ModuleType) -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    checked = {f".{node.module}": {alias.name for alias in node.names} for node in guarded.body}  # type: ignore[attr-defined]
    assert {home: {*names} for home, names in package._HOMES.items()} == checked
    assert {name for names in checked.values() for name in names} <= {*package.__all__} <= {*dir(package)}
    assert all(getattr(package, name) is not None for name in package.__all__)


def test_lossbook_is_imported_without_torch_and_types_are_the_same_module_by_either_name() -> None:
    code = (
        "import sys, lossbook as lb, lossbook.errors\n"
        "from lossbook.cookbook.settings.rl import RLConfig\n"
        "assert not {'torch', 'numpy'} & {*sys.modules}\n"
        "from lossbook.types import Datum\n"
        "import lossbook.types as types, pickle\n"
        "assert types is lb.types is lb.datums.types and Datum is lb.Datum and lossbook.errors is lb.errors\n"
        "assert pickle.loads(pickle.dumps(lb.AdamParams())) == lb.AdamParams()\n"
        "assert len(lb.list_losses()) >= 76 and lb.losses.get_loss is lb.get_loss\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
