"""The rules of the house that a reader of import statements can check: who may import whom, and what is never used."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: The parts of the package, lowest first: each may import itself and those before it.
PARTS = ("datums", "losses", "trainer", "integrations", "cookbook")
DIRECTION = "imports go one way: datums <- losses <- trainer <- integrations <- cookbook"
#: Modules that turn bytes from a file into running code.
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "runpy",
    "code",
}
#: Keywords that must be False where they are given.
UNSAFE_FLAGS = {"trust_remote_code", "allow_pickle", "shell"}
#: Functions that run a text or a file as code, or hand a text to a shell; a builtin is called by its bare name.
UNSAFE_CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "torch.load",
        "torch.hub.load",
        "torch.jit.load",
        "torch.package.PackageImporter",
    ),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.unsafe_load",
        "yaml.full_load",
        "os.system",
        "os.popen",
        "subprocess.getoutput",
    ),
    *("subprocess.getstatusoutput", "pandas.read_pickle", "pd.read_pickle"),
}
#: Where one of them is called all the same, and why that runs no text of a file, a row or a model.
ALLOWED_CALLS = {
    ("losses/trace/trace.py", "exec"): "the source that it has written itself, of a loss that the user chose",
    ("losses/trace/trace.py", "compile"): "the same source",
}


def package_modules() -> list[Path]:
    """Every module of the package, relative to the root."""
    paths = [ROOT / "__init__.py", *(path for part in PARTS for path in (ROOT / part).rglob("*.py"))]
    return sorted(path.relative_to(ROOT) for path in paths)


def loss_modules() -> list[Path]:
    """The modules of losses/ without the conformance kit, which may do what these may not."""
    paths = (path.relative_to(ROOT) for path in (ROOT / "losses").rglob("*.py"))
    return sorted(path for path in paths if path.parts[1] != "testing")


@cache
def parse(module: Path) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"))


def imports_against_the_direction(tree: ast.Module, module: Path) -> Iterator[str]:
    """A sentence for each relative import of a higher part, or of the package root, which imports every part."""
    own = module.parts[0]
    allowed = PARTS[: PARTS.index(own) + 1] if own in PARTS else PARTS
    package = ("lossbook", *module.parent.parts)
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
        named = [base[1]] if len(base) > 1 else [alias.name for alias in node.names]
        for part in named:
            if part in PARTS and part not in allowed:
                yield f"{module} line {node.lineno}: {own} imports {part}, but {DIRECTION}"
            elif part not in PARTS and own in PARTS and own != PARTS[-1]:
                yield f"{module} line {node.lineno}: {own} imports {part} from the root, but {DIRECTION} <- root"


def imported_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each absolutely imported module with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno


def registers_losses(tree: ast.Module) -> bool:
    """Whether a module holds loss functions (a family), rather than what packs, reduces and counts for them."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return any("register_loss(" in ast.unparse(mark) for function in functions for mark in function.decorator_list)


def device_or_value_code(tree: ast.Module, module: Path) -> Iterator[str]:
    """A sentence for each place that waits for or names a device; `device=` is free where no loss is registered."""
    may_place = not registers_losses(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        where = f"{module} line {node.lineno}"
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("item", "cuda"):
            yield f"{where}: .{node.func.attr}() waits for or names a device; a loss is tensors in, tensors out"
        if not may_place and any(keyword.arg == "device" for keyword in node.keywords):
            yield f"{where}: device= beside a loss; make new tensors from the inputs (new_zeros, ones_like)"


def unsafe_loading(tree: ast.Module, module: Path) -> Iterator[str]:
    """A sentence for each way of running code that came with a file, a row or a text."""
    for name, line in imported_names(tree):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"{module} line {line}: imports {name}, which runs code from a file; use safetensors and JSON"
    for name, line in unsafe_calls(tree):
        if (module.as_posix(), name) not in ALLOWED_CALLS:
            yield f"{module} line {line}: {name} runs what it is given; use safetensors, JSON, ast.literal_eval, argument lists"
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in UNSAFE_FLAGS and ast.unparse(node.value) != "False":
            yield f"{module} line {node.value.lineno}: {ast.unparse(node)} runs code that came with a file or a text"


def unsafe_calls(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Each use of one of `UNSAFE_CALLS`, called or handed on, by whatever name it was imported."""
    names = {name: name for name in UNSAFE_CALLS}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            renamed = [alias for alias in node.names if alias.asname]
            for call in UNSAFE_CALLS:
                names |= {
                    f"{one.asname}{call.removeprefix(one.name)}": call
                    for one in renamed
                    if call.startswith(f"{one.name}.")
                }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            name = names.get(ast.unparse(node).removeprefix("builtins."), "")
            if name in UNSAFE_CALLS:
                yield name, node.lineno


def test_imports_between_parts_go_one_way() -> None:
    problems = [one for module in package_modules() for one in imports_against_the_direction(parse(module), module)]
    assert not problems, "\n".join(problems)


def test_the_package_imports_itself_relatively() -> None:
    problems = [
        f"{module} line {line}: imports {name}; inside the package write `from ..part import name`"
        for module in package_modules()
        for name, line in imported_names(parse(module))
        if name.split(".")[0] in ("lossbook", *PARTS)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("folder", ["tests", "examples", "benchmarks"])
def test_code_outside_the_package_imports_it_by_its_name(folder: str) -> None:
    # `import losses` works from the root by accident and makes a second registry beside lossbook's.
    problems = [
        f"{path.relative_to(ROOT)} line {line}: imports {name}; write lossbook.{name}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name, line in imported_names(ast.parse(path.read_text(encoding="utf-8")))
        if name.split(".")[0] in PARTS
    ]
    assert not problems, "\n".join(problems)


def test_losses_know_no_device_and_read_no_values() -> None:
    problems = [one for module in loss_modules() for one in device_or_value_code(parse(module), module)]
    assert not problems, "\n".join(problems)


def test_nothing_runs_code_that_came_with_a_file() -> None:
    problems = [one for module in package_modules() for one in unsafe_loading(parse(module), module)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(("file", "name"), ALLOWED_CALLS)
def test_what_is_allowed_to_run_code_does(file: str, name: str) -> None:
    assert name in [call for call, _ in unsafe_calls(parse(Path(file)))], f"take {name} of {file} out of ALLOWED_CALLS"


def test_no_file_names_the_place_where_it_was_written() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    places = [b"../" + b"shared", b"/work" + b"/"]
    problems = [
        f"{name} mentions {place.decode()}, which exists on no other machine"
        for name in listed.stdout.split("\0")
        if name and (ROOT / name).is_file()
        for place in places
        if place in (ROOT / name).read_bytes()
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "source", "sentence"),
    [
        ("datums/x.py", "from ..losses import registry", "datums imports losses"),
        ("datums/x.py", "def f():\n    from ..trainer.engine import run", "line 2: datums imports trainer"),
        ("losses/testing/x.py", "from ...trainer import engine", "losses imports trainer"),
        ("losses/__init__.py", "from .. import trainer", "losses imports trainer"),
        ("trainer/x.py", "from .. import get_loss", "trainer imports get_loss from the root"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, source: str, sentence: str) -> None:
    (problem,) = imports_against_the_direction(ast.parse(source), Path(module))
    assert sentence in problem


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__init__.py", "from .cookbook import cli"),
        ("losses/x.py", "from ..datums.types import Datum\nfrom . import stats\nfrom .stats import mean"),
        ("losses/testing/__init__.py", "from .check import check_loss\nfrom ..registry import get_loss"),
        ("trainer/x.py", "from .. import losses"),
        ("cookbook/x.py", "from .. import ServiceClient"),
    ],
)
def test_an_import_along_the_direction_is_free(module: str, source: str) -> None:
    assert not list(imports_against_the_direction(ast.parse(source), Path(module)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path, weights_only=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "numpy.load(path, allow_pickle=flag)",
        "eval(text)",
        "builtins.exec(text)",
        "list(map(eval, texts))",
        "import torch as t\nt.load(path)",
        "from torch import load as read\nread(path)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "import os as o\no.popen(text)",
        "import marshal",
        "from runpy import run_path",
    ],
)
def test_unsafe_loading_is_found(source: str) -> None:
    assert len(list(unsafe_loading(ast.parse(source), Path("trainer/x.py")))) == 1


@pytest.mark.parametrize(
    "source",
    ["re.compile(text)", "torch.compile(f)", "model.eval()", "json.load(file)", "from json import load\nload(file)"],
)
def test_safe_calls_of_like_names_are_free(source: str) -> None:
    assert not list(unsafe_loading(ast.parse(source), Path("trainer/x.py")))


@pytest.mark.parametrize("line", ["loss.item()", "x.cuda()", "torch.zeros(3, device=x.device)"])
def test_device_code_in_a_loss_is_found(line: str) -> None:
    tree = ast.parse(f'@register_loss("mine", per="token")\ndef mine(logprobs):\n    return {line}')
    assert len(list(device_or_value_code(tree, Path("losses/x.py")))) == 1
