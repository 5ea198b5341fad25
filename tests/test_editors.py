"""What an editor knows of lossbook after the documented installation: a type checker reads a user's script against it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import lossbook
import lossbook as lb
from lossbook.losses import Loss, Mixture, Positive, stats
from lossbook.losses.testing import check_loss
from lossbook.losses.supervised import poly1

reveal_type(lossbook.get_loss("grpo"))
reveal_type(0.9 * lb.get_loss("grpo") + 0.1 * lb.get_loss("cross_entropy"))
training = lb.ServiceClient().create_lora_training_client(base_model="tiny", rank=8)
reveal_type(training)
datum = lb.datum_from_tokens_weights([1, 2], [0.0, 1.0])
future = training.forward_backward([datum], "ppo")
reveal_type(future.result().metrics)
training.forward_backwards
"""


def diagnostics(script: Path) -> list[dict]:
    """What pyright says about a script outside the repository, with the packages of the interpreter that runs the tests."""
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(script)]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["generalDiagnostics"]


@pytest.mark.slow
def test_a_type_checker_resolves_lossbook_and_knows_what_its_calls_return(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    said = diagnostics(script)
    types = [one["message"] for one in said if one["severity"] == "information"]
    assert [text.partition('" is "')[2].rstrip('"') for text in types] == [
        "Loss | Mixture",
        "Mixture",
        "TrainingClient",
        "dict[str, float]",
    ]
    (error,) = [one["message"] for one in said if one["severity"] == "error"]
    assert 'Cannot access attribute "forward_backwards"' in error


def test_the_installation_is_one_that_editors_follow() -> None:
    # A path file or a copy in site-packages; pip's import hook alone is invisible to them. `make` installs it so.
    import lossbook

    places = [Path(path) / "lossbook" / "__init__.py" for path in sys.path]
    assert any(place.exists() for place in places), "lossbook is imported through a hook: install it with `make lint`"
    assert Path(lossbook.__file__).resolve() == ROOT / "__init__.py"
