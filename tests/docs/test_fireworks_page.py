"""docs/fireworks.md: every script is in its table, and the mixtures of experts do what it says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import lossbook as lb
from lossbook.trainer.routing.routers import routers_of
from tests.trainer.every_model.building import model_of
from tests.trainer.model.architectures import build_tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "fireworks.md").read_text(encoding="utf-8")


def kinds(beginning: str) -> list[str]:
    """The types of models that a point of the list names."""
    (point,) = re.findall(rf"^- {beginning}: (.*?)(?=^- |\n\n)", PAGE, re.DOTALL | re.MULTILINE)
    return re.findall(r"`(\w+)`", point)


def test_every_script_is_in_the_table_beside_its_page() -> None:
    listed = set(re.findall(r"\]\(\.\./examples/fireworks/(\w+\.py)\)", PAGE))
    assert listed == {script.name for script in (ROOT / "examples" / "fireworks").glob("*.py")}


@pytest.mark.slow
def test_the_mixtures_that_are_listed_follow_routing_matrices_or_refuse_them(tmp_path: Path) -> None:
    told = {kind: True for kind in kinds("followed by")} | {
        kind: False for kind in kinds("refused by") if kind != "deepseek_v2"
    }
    assert len(told) > 50
    seen: dict[str, bool] = {}
    for kind in told:
        folder = tmp_path / kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model_of(kind).save_pretrained(folder)
        build_tiny_tokenizer().save_pretrained(folder)
        model = lb.ServiceClient(device="cpu").create_training_client(str(folder)).local.model
        try:
            seen[kind] = bool(routers_of(model).modules)
        except lb.errors.ModelError as error:
            seen[kind] = "cannot be given routing_matrices" not in str(error)
    assert seen == told
