"""What carries the project on: workflows call targets that exist, an issue asks for what a mend needs, a release agrees with its tag."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(workflow: Path) -> list[str]:
    """The commands that a workflow runs."""
    jobs: dict[str, Any] = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_only_targets_of_the_makefile(workflow: Path) -> None:
    commands = steps(workflow)
    assert [command for command in commands if command.split()[0] not in ("make", ".ci/run")] == []
    assert {command.split()[1] for command in commands if command.startswith("make ")} <= TARGETS


def test_every_python_that_is_supported_is_tested() -> None:
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))
    classified = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text("utf-8"))
    assert tests["jobs"]["fast"]["strategy"]["matrix"]["python"] == classified


@pytest.mark.parametrize("name", ["bug", "loss"])
def test_an_issue_asks_for_what_doctor_says(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text("utf-8"))
    asked = [part for part in form["body"] if "lossbook doctor" in part["attributes"]["label"]]
    assert [part["validations"]["required"] for part in asked] == [True]


def release(folder: Path, code: str = "1.2.3", changelog: str = "## [1.2.3] - 2027-01-31") -> Path:
    folder.joinpath("pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    folder.joinpath("__init__.py").write_text(f'__version__ = "{code}"\n')
    folder.joinpath("CHANGELOG.md").write_text(f"# Changelog\n\n## [Unreleased]\n\n{changelog}\n")
    return folder


def test_a_release_whose_tag_version_and_changelog_agree_is_let_through(tmp_path: Path) -> None:
    problems = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))["problems"]
    assert problems("v1.2.3", release(tmp_path)) == []


@pytest.mark.parametrize(
    ("tag", "changes", "words"),
    [
        ("v1.2.4", {}, "the tag should be v1.2.3"),
        ("1.2.3", {}, "the tag should be v1.2.3"),
        ("v1.2.3", {"code": "1.2.2"}, "__init__.py 1.2.2"),
        ("v1.2.3", {"changelog": "## [1.2.3]"}, "CHANGELOG.md has no section"),
    ],
)
def test_a_release_that_disagrees_with_itself_is_stopped(
    tag: str, changes: dict[str, str], words: str, tmp_path: Path
) -> None:
    problems = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))["problems"]
    (problem,) = problems(tag, release(tmp_path, **changes))
    assert words in problem
