"""What is installed is what is in the tree, and importing it stays cheap."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("datums", "losses", "trainer", "integrations", "cookbook")
#: Imported where they are used, so that `import lossbook` never waits for them.
HEAVY = ("transformers", "peft", "rich", "matplotlib", "hypothesis", "pytest", "tyro", "datasets", "tinker", "gguf")


def packages_of_the_tree() -> list[str]:
    """Dotted names of the folders that hold an __init__.py, the root being `lossbook`."""
    folders = sorted(path.parent.relative_to(ROOT) for part in PARTS for path in (ROOT / part).rglob("__init__.py"))
    return ["lossbook", *(".".join(("lossbook", *folder.parts)) for folder in folders)]


def modules_of_the_tree() -> set[str]:
    """Paths inside a wheel of every module of the package."""
    found = [ROOT / "__init__.py", *(path for part in PARTS for path in (ROOT / part).rglob("*.py"))]
    return {f"lossbook/{path.relative_to(ROOT).as_posix()}" for path in found}


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run_python(code: str, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a fresh interpreter in `cwd`, with `path` before everything that is installed."""
    environment = os.environ if path is None else {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: an older build/ beside the sources would bring its deleted modules along."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed", "__init__.py"):
        shutil.copy(ROOT / name, source / name)
    for name in (*PARTS, *(name for name in ("tests", "examples", "benchmarks", "docs") if (ROOT / name).is_dir())):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_pyproject_lists_the_packages_of_the_tree() -> None:
    assert settings()["tool"]["setuptools"]["packages"] == packages_of_the_tree()


def test_every_module_lies_in_a_listed_package() -> None:
    listed = set(packages_of_the_tree())
    folders = {str(Path(module).parent).replace("/", ".") for module in modules_of_the_tree()}
    assert folders <= listed, f"without __init__.py, so left out of the wheel: {sorted(folders - listed)}"


def test_the_package_states_the_version_of_pyproject() -> None:
    source = (ROOT / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{settings()["project"]["version"]}"' in source


def test_starting_pytest_does_not_import_lossbook() -> None:
    # An entry point in pytest11 would import lossbook, and so torch, in every pytest run beside an installed lossbook.
    assert "pytest11" not in settings()["project"].get("entry-points", {})


def test_every_requirement_is_pinned() -> None:
    project = settings()["project"]
    asked = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    pins = {
        line.split("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split() if "==" in line
    }
    names = {name.split(">")[0].split("[")[0].replace("-", "_").lower() for name in asked} - {"lossbook"}
    assert names <= {pin.replace("-", "_").lower() for pin in pins}


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    templates = [*(ROOT / "cookbook" / "pages").glob("*.html"), *(ROOT / "cookbook" / "scaffold").glob("*.py.txt")]
    templates += (ROOT / "integrations" / "serve" / "page").glob("*.html")
    texts = {f"lossbook/{path.relative_to(ROOT).as_posix()}" for path in templates}
    presets = (ROOT / "losses" / "variants" / "systems").glob("*.toml")
    others = {"lossbook/py.typed", *(f"lossbook/{path.relative_to(ROOT).as_posix()}" for path in presets)}
    assert names == modules_of_the_tree() | others | texts


@pytest.mark.slow
def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_wheel_imports_from_any_folder_and_knows_its_losses(installed: Path, tmp_path: Path) -> None:
    code = "import json, lossbook as l; print(json.dumps([l.__file__, l.list_losses(), l.list_presets()]))"
    file, names, presets = json.loads(run_python(code, tmp_path, installed))
    assert Path(file).is_relative_to(installed)
    assert "cross_entropy" in names
    assert "trl:grpo" in presets
    code = "from lossbook.cookbook.pages.render import render; print(render('differing', rows=[], head=()))"
    assert "All settings but the folder are equal" in run_python(code, tmp_path, installed)


@pytest.mark.slow
def test_the_installed_command_lists_the_losses(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(installed / "bin" / "lossbook"), "losses", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cross_entropy" in done.stdout


def test_import_lossbook_brings_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import json, sys
import torch, numpy, pydantic
before = set(sys.modules)
import lossbook
added = set(sys.modules) - before
print(json.dumps(sorted(added & set({HEAVY!r}))))
"""
    assert json.loads(run_python(code, tmp_path)) == []


def test_the_package_is_imported_once_whatever_its_folder_is_called() -> None:
    # pytest would take the root for a test package and import it under the folder's name: --confcutdir prevents it.
    init = ROOT / "__init__.py"
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    names = [name for name, file in files.items() if file and Path(file).resolve() == init]
    assert names in ([], ["lossbook"])
