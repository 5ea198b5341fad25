"""What the package is built on: no version with a known vulnerability, where the index can be asked."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Vulnerabilities that are accepted, by their id, each with the reason.
ACCEPTED: dict[str, str] = {}


def vulnerabilities(report: str) -> list[str]:
    """ "package version: id" of each vulnerability in pip-audit's JSON that is not accepted."""
    return [
        f"{package['name']} {package['version']}: {one['id']}"
        for package in json.loads(report)["dependencies"]
        for one in package.get("vulns", ())
        if not {one["id"], *one.get("aliases", ())} & ACCEPTED.keys()
    ]


def unaudited(report: str) -> list[str]:
    """The packages that pip-audit left out, although it then says that it knows of no vulnerability."""
    return [package["name"] for package in json.loads(report)["dependencies"] if "skip_reason" in package]


@pytest.mark.slow
def test_no_pinned_version_has_a_known_vulnerability() -> None:
    program = shutil.which("pip-audit", path=str(ROOT / ".venv/audit/bin")) or shutil.which("pip-audit")
    if program is None:
        pytest.skip("pip-audit is not installed: make audit")
    asked = [
        "--requirement",
        "constraints.txt",
        "--no-deps",
        "--disable-pip",
        "--format",
        "json",
        "--progress-spinner",
        "off",
    ]
    done = subprocess.run([program, *asked], cwd=ROOT, capture_output=True, text=True, timeout=600)
    if not done.stdout.strip():
        pytest.skip(f"the index does not answer: {done.stderr.strip().splitlines()[-1:]}")
    if len(unaudited(done.stdout)) == len(json.loads(done.stdout)["dependencies"]):
        pytest.skip("the index knows of no package's vulnerabilities, as a mirror does: nothing was audited")
    assert vulnerabilities(done.stdout) == [], "move the pin in constraints.txt, or accept it by id, with the reason"


def test_the_vulnerabilities_of_a_report_are_named() -> None:
    """In the form that pip-audit's README shows."""
    report = {
        "dependencies": [
            {"name": "flask", "version": "0.5", "vulns": [{"id": "PYSEC-2019-179", "fix_versions": ["1.0"]}]},
            {"name": "jinja2", "version": "3.0.2", "vulns": []},
            {"name": "unknown", "skip_reason": "not on the index"},
        ],
        "fixes": [],
    }
    assert vulnerabilities(json.dumps(report)) == ["flask 0.5: PYSEC-2019-179"]
    assert unaudited(json.dumps(report)) == ["unknown"]
