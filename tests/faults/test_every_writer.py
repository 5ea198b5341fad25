"""Whatever writes goes through datums/disk.py, so that a failpoint reaches it, and so that half a file is never left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("datums", "losses", "trainer", "integrations", "cookbook")
DISK = "datums/disk.py"

#: Calls that write a file; allowed inside `with disk.writing(...)`.
WRITES = {"write_text", "write_bytes", "save_file", "save_pretrained", "savefig", "tofile", "dump", "save", "savez"}
#: Calls that change names on the disk; disk.py has all that the package needs.
NAMES = {
    *("os.replace", "os.rename", "os.renames", "os.mkdir", "os.makedirs", "os.remove", "os.unlink", "os.rmdir"),
    *("os.fsync", "os.link", "os.symlink", "os.truncate", "os.fdatasync"),
    *("shutil.rmtree", "shutil.move", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree"),
    *("tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.TemporaryDirectory", "tempfile.NamedTemporaryFile"),
}
METHODS = {"mkdir", "unlink", "rmdir", "symlink_to", "hardlink_to", "touch"}

#: (file, call): why it may write without a failpoint.
ALLOWED = {
    (
        "trainer/checkpoint/state.py",
        "tempfile.mkdtemp",
    ): "a scratch folder of the system, whose files go into a checkpoint",
    ("trainer/checkpoint/state.py", "shutil.rmtree"): "that scratch folder",
    ("cookbook/doctor/self_test.py", "tempfile.TemporaryDirectory"): "a scratch folder of the system, for one check",
    (
        "cookbook/doctor/checks.py",
        "tempfile.NamedTemporaryFile",
    ): "asks whether a file can be made here; it is gone at once",
    ("cookbook/confined/inside/serve.py", "os.open"): "os.devnull, in the confined process",
    ("cookbook/confined/inside/walls.py", "os.open"): "a folder as a path only (O_PATH), for the system's rules on it",
    ("losses/cards/plots.py", "curve_figure(curve).savefig"): "into memory; what asks for the picture writes it",
    (
        "cookbook/sweeps/runners.py",
        "tempfile.TemporaryDirectory",
    ): "a scratch folder of the system, for configs and logs",
    ("cookbook/cli.py", "os.open"): "os.devnull, in place of a reader that is gone",
    (
        "cookbook/commands/conform.py",
        "tempfile.TemporaryDirectory",
    ): "a scratch folder of the system, for checkpoints of the checks",
}


def called(node: ast.Call) -> tuple[str, str]:
    """The call's dotted name, and its last part."""
    name = ast.unparse(node.func)
    return name, name.rpartition(".")[2]


def opens_for_writing(node: ast.Call) -> bool:
    """Whether it is an `open` with a mode that writes, or that cannot be read off."""
    name, last = called(node)
    if last != "open" or name.startswith(("webbrowser.", "stack.")):
        return False
    where = 0 if "." in name and name not in ("builtins.open", "gzip.open", "io.open", "os.open") else 1
    given = [keyword.value for keyword in node.keywords if keyword.arg == "mode"] or node.args[where : where + 1]
    if name == "os.open":
        return "O_RDONLY" not in ast.unparse(node)
    return bool(given) and (not isinstance(given[0], ast.Constant) or not set(str(given[0].value)).isdisjoint("wax+"))


def unguarded(source: ast.Module) -> Iterator[tuple[str, int]]:
    """(call, line) of each call that writes outside `with disk.writing(...)`."""
    guarded: set[ast.AST] = set()
    for node in ast.walk(source):
        if isinstance(node, ast.With) and any(
            ast.unparse(item.context_expr).startswith("disk.writing(") for item in node.items
        ):
            guarded.update(ast.walk(node))
    for node in ast.walk(source):
        if not isinstance(node, ast.Call):
            continue
        name, last = called(node)
        writes = opens_for_writing(node) or ("." in name and last in WRITES) or name == "save_file"
        if (writes and node not in guarded) or name in NAMES or ("." in name and last in METHODS):
            yield name, node.lineno


def writers() -> dict[tuple[str, str], int]:
    """(file, call) to line, for all of the package but disk.py."""
    return {
        (path.relative_to(ROOT).as_posix(), name): line
        for part in PARTS
        for path in sorted((ROOT / part).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() != DISK
        for name, line in unguarded(ast.parse(path.read_text(encoding="utf-8")))
        if name not in HARMLESS
    }


#: Calls of those names that write nothing.
HARMLESS = {"figure.savefig": "into memory", "yaml.dump": "returns text", "disk.writing": "is the guard"}


def test_every_call_that_writes_goes_through_the_module_for_it() -> None:
    problems = [
        f"{file} line {line}: {name}: write through datums/disk.py (`with disk.writing(path):` around a library's own "
        "writing), so that failpoints reach it"
        for (file, name), line in writers().items()
        if (file, name) not in ALLOWED
    ]
    assert not problems, "\n".join(problems)


def test_every_exception_is_still_there() -> None:
    assert not ALLOWED.keys() - writers().keys()


@pytest.mark.parametrize(
    "line",
    [
        *(
            'open(path, "w")',
            'path.open("a")',
            "open(path, mode=how)",
            'gzip.open(path, "wt")',
            "path.write_text(text)",
        ),
        *("os.open(path, os.O_CREAT)", "os.replace(a, b)", "shutil.rmtree(a)", "path.mkdir()", "save_file(a, b)"),
        *("model.save_pretrained(folder)", "np.save(path, array)", "json.dump(value, file)", "torch.save(a, b)"),
        "with disk.writing(path):\n    pass\npath.write_bytes(b'')",
    ],
)
def test_a_call_that_writes_is_seen(line: str) -> None:
    assert list(unguarded(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        *("open(path)", 'path.open("rb")', "os.open(path, os.O_RDONLY)", "text.replace(a, b)", "disk.rename(a, b)"),
        "with disk.writing(path), open(path, 'w') as file:\n    json.dump(value, file)",
    ],
)
def test_a_call_that_writes_nothing_is_free(line: str) -> None:
    assert not list(unguarded(ast.parse(line)))
