"""Every module of tinker-cookbook is imported where `import tinker` means the door; what is not needs another service."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lossbook.integrations.tinker.alias import STAND_IN

#: Modules of the cookbook 0.6.1 that import a package of another service or environment, which no extra of lossbook installs.
NEED = {
    "inspect_ai": (
        "eval.custom_inspect_task",
        "eval.inspect_evaluators",
        "eval.inspect_utils",
        "eval.run_inspect_evals",
    ),
    "modal": (
        "inference.modal.common",
        "inference.modal.compare",
        "inference.modal.prepare",
        "inference.modal.serve",
        "recipes.distillation.harbor_multiturn",
        "recipes.distillation.on_policy_distillation_harbor_multi_turn",
        "recipes.harbor_rl.eval",
        "recipes.harbor_rl.harbor_env",
        "recipes.harbor_rl.scripts.eval_harbor_rl",
        "recipes.harbor_rl.scripts.train_terminal_bench",
        "recipes.harbor_rl.train",
        "sandbox.modal_sandbox",
    ),
    "textarena": (
        "recipes.multiplayer_rl.text_arena.env",
        "recipes.multiplayer_rl.text_arena.play",
        "recipes.multiplayer_rl.text_arena.train",
    ),
    "google.genai": ("recipes.search_tool.embedding",),
    "chromadb": (
        "recipes.search_tool.offline_eval",
        "recipes.search_tool.search_env",
        "recipes.search_tool.tools",
        "recipes.search_tool.train",
    ),
    "verifiers": (
        "recipes.verifiers_rl.evaluate",
        "recipes.verifiers_rl.train",
        "recipes.verifiers_rl.verifiers_env",
    ),
    "openai": ("recipes.verifiers_rl.tinker_openai",),
    "litellm": ("third_party.litellm", "third_party.litellm.provider"),
}
#: Imports each module in turn and prints the errors as JSON.
CHILD = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
import tinker
assert tinker.__name__ == "lossbook.integrations.tinker"
errors = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"tinker_cookbook.{name}")
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
foreign = sorted(name for name, module in sys.modules.items() if name.split(".")[0] == "tinker" and not module.__name__.startswith("lossbook."))
print(json.dumps({"errors": errors, "foreign": foreign}))
"""


def modules() -> list[str]:
    """Dotted names below `tinker_cookbook`, but programs and tests."""
    spec = importlib.util.find_spec("tinker_cookbook")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tinker-cookbook is not installed")
    root = Path(spec.submodule_search_locations[0])
    paths = [path.relative_to(root).with_suffix("") for path in root.rglob("*.py") if path.name != "__main__.py"]
    names = {".".join(path.parts).removesuffix("__init__").rstrip(".") for path in paths}
    return sorted(name for name in names if name and not name.endswith("_test"))


@pytest.mark.slow
def test_every_module_of_the_cookbook_is_imported(tmp_path: Path) -> None:
    names = modules()
    paths = [str(STAND_IN), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    excused = {name: package for package, those in NEED.items() for name in those if not installed(package)}
    unexplained = {
        name: error
        for name, error in result["errors"].items()
        if name not in excused or not error.startswith(("ImportError", "ModuleNotFoundError"))
    }
    assert not unexplained, json.dumps(unexplained, indent=1)
    assert result["foreign"] == []  # nothing of the official SDK was imported
    assert len(names) - len(result["errors"]) >= 270


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
