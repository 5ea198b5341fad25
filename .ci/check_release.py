"""Check that a tag is the version of the code and that CHANGELOG.md has a dated section for it: `check_release.py v1.2.3`."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What must be mended before this tag is released."""
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    (in_code,) = re.findall(r'^__version__ = "(.+)"$', (root / "__init__.py").read_text("utf-8"), re.MULTILINE)
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    checks = {
        f"the tag is {tag}, but pyproject.toml says version {version}: the tag should be v{version}": tag
        == f"v{version}",
        f"pyproject.toml says version {version}, __init__.py {in_code}": version == in_code,
        f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'": bool(
            re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)
        ),
    }
    return [problem for problem, holds in checks.items() if not holds]


if __name__ == "__main__":
    sys.exit("\n".join(problems(*sys.argv[1:])) or 0)
