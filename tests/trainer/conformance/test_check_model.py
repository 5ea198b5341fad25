"""The conformance kit for models holds for models that run rightly, and names what a planted fault breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import lossbook as lb
from lossbook.cookbook.cli import main
from lossbook.testing import check_model
from lossbook.trainer.conformance import CHECKS
from lossbook.trainer.model.tiny import build_tiny_tokenizer
from lossbook.trainer.model.verdict import Verdict


def folder_of(config: Any, folder: Path) -> str:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_every_check_holds_for_the_tiny_model_and_the_last_line_says_how_it_runs() -> None:
    report = check_model("tiny", device="cpu")
    assert report.ok, str(report)
    assert str(report).splitlines()[-1] == (
        "lossbook therefore packs; shares prefixes; cuts what is not read; samples with a cache that keeps each prompt once"
    )


def test_a_model_with_a_state_holds_every_check_and_the_reason_for_padding_is_given(tmp_path: Path) -> None:
    config = transformers.MambaConfig(vocab_size=260, hidden_size=32, state_size=8, num_hidden_layers=2)
    report = check_model(folder_of(config, tmp_path), device="cpu")
    assert report.ok, str(report)
    assert "pads (packs: no, layer 0 (linear_attention) carries a state along the row)" in report.summary


def test_a_layout_that_mixes_sequences_fails_by_name() -> None:
    client = lb.ServiceClient(device="cpu").create_training_client("tiny")
    with torch.no_grad():
        for parameter in client._model.module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    for probe in ("sharing", "blocks"):
        client._model.verdicts[probe] = Verdict(False, "planted")
    rotation: Any = client._model.module.model.rotary_emb  # type: ignore[union-attr]
    rotation.register_forward_hook(
        lambda _module, given, output: tuple(x * (1 + 0.1 * given[0].shape[1]) for x in output)
    )
    report = check_model(client)
    failed = {check.name for check in report.checks if check.outcome == "fails"}
    assert "a datum's numbers do not depend on its company" in failed
    assert not report.ok


def test_an_encoder_has_nothing_to_check() -> None:
    report = check_model("tiny-encoder", device="cpu")
    assert {check.outcome for check in report.checks} == {"does not apply"}


def test_the_command_prints_a_line_per_check_and_ends_with_how_the_model_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "model", "tiny", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(("holds", "does not apply"))]) == len(CHECKS)
    assert lines[-1].startswith("lossbook therefore packs;")
