"""docs/tinker.md: its program runs both ways, its folders are there, every setting is listed, every refusal is one and says what it should."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lossbook.integrations.tinker as tinker
from lossbook.cookbook.commands.tinker import program
from lossbook.integrations.tinker.settings import PREFIX, Settings, configure, current

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tinker.md").read_text(encoding="utf-8")
IMPORT = "import lossbook.integrations.tinker as tinker\n"


def rows(section: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_every_setting_is_listed_with_its_option_and_its_variable() -> None:
    listed = {row[0].strip("`"): row for row in rows("Settings")}
    assert listed.keys() == Settings.model_fields.keys()
    for name, (_, option, variable, _) in listed.items():
        assert option.startswith(f"`--{name.replace('_', '-')}")
        assert variable.startswith(f"`{PREFIX}{name.upper()}`")


def test_every_option_that_is_listed_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program(["--help"])
    printed = capsys.readouterr().out
    assert all(row[1].strip("`").split("`")[0].split()[0] in printed for row in rows("Settings"))


@pytest.mark.slow
def test_the_program_runs_by_lossbook_tinker_and_its_files_lie_where_the_page_says(tmp_path: Path) -> None:
    script = fenced("python")[0]
    assert script.startswith(IMPORT)
    (tmp_path / "train.py").write_text(script.replace(IMPORT, "import tinker\n"), encoding="utf-8")
    command = "import sys; from lossbook.cookbook.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", command, "tinker", "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    nats = [float(number) for number in re.findall(r"([\d.]+) nats", done.stdout)]
    assert nats[0] > 10 > 1 > nats[4] > nats[5], "a loaded state goes on from after the last step"
    assert "' 5" in done.stdout
    (tree,) = [block for block in fenced("text") if block.startswith("checkpoints/tinker/")]
    shown = {re.split(r"\s{2,}", line.strip())[0].rstrip("/") for line in tree.splitlines()[1:]}
    there = {
        path.relative_to(tmp_path / "checkpoints/tinker").as_posix()
        for path in (tmp_path / "checkpoints/tinker").rglob("*")
    }
    written = {re.sub(r"session-[0-9a-f]{32}", "session-ID", path) for path in there}
    assert shown - written == {"runs/session-ID.train.0/external_weights/NAME"}


@pytest.fixture
def training(tmp_path: Path) -> Any:
    before = current().root
    configure(root=tmp_path)
    yield tinker.ServiceClient().create_lora_training_client("tiny", rank=2).result()
    configure(root=before)


def refusals(training: Any) -> dict[str, Callable[[], Any]]:
    """What does each thing that the page says is refused, by the first name in its row."""
    service = tinker.ServiceClient()
    prompt, params = tinker.ModelInput.from_ints([1, 2]), tinker.SamplingParams(max_tokens=1)
    image = tinker.ModelInput(chunks=[tinker.types.ImageChunk(data=b"", format="png")])
    inputs: Any = {"target_tokens": [2], "logprobs": [-1.0], "advantages": [1.0]}
    datum = tinker.Datum(tinker.ModelInput.from_ints([1]), inputs)
    with_bounds: Any = {**inputs, "clip_low_threshold": [0.8]}
    bounded = tinker.Datum(tinker.ModelInput.from_ints([1]), with_bounds)
    rest = service.create_rest_client()
    return {
        "stable_reinforce": lambda: training.forward_backward([datum], "stable_reinforce"),
        "ModelInput": lambda: training.forward([tinker.Datum(image, inputs)], "cross_entropy"),
        "DimuonParams": lambda: training.optim_step(tinker.DimuonParams(learning_rate=0.1)),
        "clip_low_threshold": lambda: training.forward_backward([bounded], "ppo"),
        "prompt_alt_tokens_k": lambda: service.create_sampling_client(base_model="tiny").sample(
            prompt, 1, params, prompt_alt_tokens_k=2
        ),
        "age_encryption_recipients": lambda: training.save_weights_external("x", age_encryption_recipients=["age1"]),
        "get_playground_url": lambda: training.save_weights_for_sampler("x").result().get_playground_url(),
        "export_session_trace": lambda: rest.export_session_trace("session-1").result(),
        "get_audit_log": lambda: tinker.AdminClient().get_audit_log().result(),
        "get_billing_usage": lambda: asyncio.run(rest.get_billing_usage_async("2026-01-01", "2026-02-01")),
    }


@pytest.mark.slow
def test_what_the_page_says_is_refused_is_refused_with_the_nearest_by_its_name(training: Any) -> None:
    listed = {re.findall(r"`(\w+)", what)[0]: nearest for what, nearest in rows("What is refused")}
    tried = refusals(training)
    assert listed.keys() == tried.keys()
    for what, nearest in listed.items():
        named = re.findall(r"`([\w.]+)`", nearest)
        with pytest.raises(Exception, match=re.escape(named[0])):
            tried[what]()
