"""`lossbook doctor` and `lossbook doctor parity` name what is broken, and fail only then."""

from __future__ import annotations

import importlib.machinery
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lossbook
from lossbook import ServiceClient, datum_from_tokens_weights
from lossbook.cookbook.cli import main
from lossbook.cookbook.doctor import checks as doctor_checks
from lossbook.cookbook.doctor import parity
from lossbook.cookbook.doctor.environment import guarded, verdict
from lossbook.cookbook.doctor.finding import Finding
from lossbook.cookbook.doctor.self_test import self_tests
from lossbook.cookbook.rollouts.parity import LARGEST_LIMIT, compare, measure_parity
from lossbook.cookbook.settings.choices import TrackerName
from lossbook.trainer import SamplingClient, TrainingClient


def texts(findings: Iterator[Finding]) -> dict[str, str]:
    return {finding.subject: f"{finding.state} {finding.text}" for finding in findings}


def test_it_prints_a_line_per_check_and_exits_with_0_when_all_required_checks_pass(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "ok    Python",
        "ok    torch",
        "ok    registered",
        "ok    training on cpu",
        "all required checks passed",
    ):
        assert line in printed, line


def test_it_exits_with_1_when_a_required_check_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert main(["doctor", "--no-self-test"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  peft                   cannot be imported" in printed
    assert "failed: peft" in printed


def test_a_training_step_that_raises_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("lossbook.trainer.clients.training.TrainingClient.forward_backward", refuse)
    assert "FAIL RuntimeError: no such instruction" in texts(self_tests())["training on cpu"]


def test_a_checkpoint_that_restores_other_logprobs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def untrained(self: ServiceClient, path: str, **options: Any) -> Any:
        return self.create_lora_training_client("tiny", rank=4, seed=0)

    monkeypatch.setattr(ServiceClient, "create_training_client_from_state", untrained)
    assert "FAIL ArithmeticError: a checkpoint restored other logprobs" in texts(self_tests())["training on cpu"]


def test_a_check_that_raises_becomes_a_failure() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("ok", "first", "")
        raise OSError("gone")

    assert [str(finding).split()[:2] for finding in guarded(broken, "files")] == [["ok", "first"], ["FAIL", "files"]]


def test_the_last_line_names_failures_or_else_warnings() -> None:
    ok, warn, fail = (Finding(state, state, "") for state in ("ok", "warn", "FAIL"))  # type: ignore[arg-type]
    assert verdict([ok, warn, fail]) == "failed: FAIL"
    assert verdict([ok, warn]) == "all required checks passed; warnings: warn"
    assert verdict([ok]) == "all required checks passed"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_to_be_seen")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:not_to_be_seen@host")
    monkeypatch.setenv("WANDB_PROJECT", "shown")
    variables = texts(doctor_checks.environment())
    assert variables["HF_TOKEN"].startswith("ok set, not shown")
    assert variables["WANDB_PROJECT"].startswith("ok shown")
    assert not any("not_to_be_seen" in text for text in variables.values())


def test_a_broken_plug_in_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lossbook.losses.plugin_errors", lambda: {"mine": "ImportError: no module named yours"})
    assert texts(doctor_checks.losses())["plug-in mine"] == "warn failed to load: ImportError: no module named yours"


def test_a_missing_optional_package_is_a_note_with_the_pip_command_and_a_folder_does_not_pass_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec

    def only_a_folder(name: str, *rest: Any) -> Any:
        return importlib.machinery.ModuleSpec(name, None) if name == "wandb" else find(name, *rest)

    monkeypatch.setattr(doctor_checks.importlib.util, "find_spec", only_a_folder)
    assert texts(doctor_checks.packages())["wandb"] == (
        "note not installed: pip install 'lossbook[wandb]' for --log-to wandb"
    )


def test_every_optional_package_that_the_code_asks_for_is_reported_with_its_extra() -> None:
    root = Path(lossbook.__file__).parent
    calls = [
        call
        for part in ("datums", "losses", "trainer", "cookbook")
        for module in (root / part).rglob("*.py")
        for call in re.findall(r'\brequire\(\s*"([\w.]+)",\s*"(\w+)"', module.read_text(encoding="utf-8"))
    ]
    asked = {(module.split(".")[0], extra) for module, extra in calls} | {
        (name, name) for name in get_args(TrackerName)
    }
    assert len(asked) > 5
    assert asked <= {(name, extra) for name, (extra, _) in doctor_checks.OPTIONAL.items()}


def test_cut_cross_entropy_is_named_with_the_setting_that_asks_for_it() -> None:
    text = doctor_checks.KERNELS["cut_cross_entropy"]
    ((setting, value),) = re.findall(r"ServiceClient\((\w+)='([\w-]+)'\)", text)
    assert ServiceClient(**{setting: value})
    assert "only on request" in text
    training = ServiceClient().create_lora_training_client("tiny", rank=2, seed=0)
    training.forward([datum_from_tokens_weights([1, 2, 3], [1.0] * 3)]).result()
    assert str(training.get_info().head).endswith("chunked")


def test_a_folder_that_cannot_be_written_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor_checks.tempfile, "NamedTemporaryFile", refuse)
    text = texts(doctor_checks.files())["writing here"]
    assert text.startswith("FAIL")
    assert "Read-only file system; choose another folder with --out" in text


def test_the_checks_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    assert list(tmp_path.iterdir()) == []


# --- parity -----------------------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_their_formulas() -> None:
    """d = trainer - sampler = 0, ln 2, -ln 2: |d| up to 0.693; k1 = -mean d = 0; k3 = mean(e^d - 1 - d) = 1/6."""
    result = compare([-1.0, -1.0, -1.0 - np.log(2)], [-1.0, -1.0 - np.log(2), -1.0])
    assert result.tokens == 3
    assert result.largest == pytest.approx(np.log(2), rel=1e-6)
    assert result.mean == pytest.approx(2 / 3 * np.log(2), rel=1e-6)
    assert result.k1 == pytest.approx(0.0, abs=1e-7)
    assert result.k3 == pytest.approx((0.0 + (1 - np.log(2)) + (-0.5 + np.log(2))) / 3, rel=1e-6)
    assert result.equal == pytest.approx(1 / 3)
    assert not result.agrees


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=20), st.floats(-0.5, 0.5))
def test_equal_logprobs_agree_and_a_shift_beyond_the_limit_does_not(logprobs: list[float], shift: float) -> None:
    assert compare(logprobs, logprobs).agrees
    shifted = compare(np.asarray(logprobs) + shift, logprobs)
    assert shifted.k3 >= 0
    if abs(shift) > LARGEST_LIMIT:
        assert not shifted.agrees


def test_the_tiny_models_sampler_and_trainer_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "parity", "--model", "tiny", "--max-tokens", "16"]) == 0
    printed = capsys.readouterr().out
    assert "verdict                they agree" in printed
    assert "chat template          sound" in printed


def test_the_weights_of_a_run_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = ServiceClient(checkpoint_dir=tmp_path).create_lora_training_client("tiny", rank=2, seed=0)
    saved = training.save_state("step-000001").result().path
    assert main(["doctor", "parity", "--run", saved, "--max-tokens", "8"]) == 0
    assert f"weights of {saved}" in capsys.readouterr().out
    assert main(["doctor", "parity", "--run", saved, "--model", "other"]) == 2
    assert "was trained from 'tiny'; leave --model out" in capsys.readouterr().err


def test_a_sampler_with_logprobs_of_another_temperature_disagrees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = SamplingClient.sample_batch

    def at_its_temperature(self: Any, *arguments: Any, **options: Any) -> Any:
        responses = sample(self, *arguments, **options).result()
        for response in responses:
            for sequence in response.sequences:
                sequence.logprobs[:] = [logprob / 0.9 for logprob in sequence.logprobs]

        class Done:
            def result(self) -> Any:
                return responses

        return Done()

    monkeypatch.setattr(SamplingClient, "sample_batch", at_its_temperature)
    assert main(["doctor", "parity", "--model", "tiny", "--max-tokens", "8"]) == 1
    assert "they DISAGREE" in capsys.readouterr().out


def test_logprobs_are_the_models_own_at_any_temperature() -> None:
    training = ServiceClient().create_lora_training_client("tiny", rank=2, seed=0)
    assert measure_parity(training, max_tokens=8, num_samples=1, temperature=0.5).agrees


def test_a_chat_template_that_cannot_be_trained_with_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    get_tokenizer = TrainingClient.get_tokenizer

    def with_a_forgetful_template(self: TrainingClient) -> Any:
        tokenizer = get_tokenizer(self)
        tokenizer.chat_template = "{{ messages[-1]['content'] }}"
        return tokenizer

    monkeypatch.setattr(TrainingClient, "get_tokenizer", with_a_forgetful_template)
    assert main(["doctor", "parity", "--model", "tiny", "--max-tokens", "4"]) == 1
    assert "the chat template cannot be trained with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ([], 2, "name a model with --model, or a run with --run"),
        (["--model", "tiny-encoder"], 1, "does not sample"),
        (["--model", "tiny", "--modle", "x"], 2, "--model"),
    ],
)
def test_a_call_that_parity_cannot_serve_is_refused(
    flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "parity", *flags]) == code
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "agrees"), [("float32", False), ("bfloat16", True), ("float16", True)])
def test_a_difference_that_is_rounding_in_bfloat16_is_a_bug_in_float32(dtype: str, agrees: bool) -> None:
    result = compare([-1.0, -2.0, -3.0], [-1.03, -2.25, -2.99], dtype=dtype)
    assert result.agrees is agrees
    assert (dtype in result.reason) is agrees
    assert not compare([-1.0, -2.0], [-1.3, -2.0], dtype=dtype).agrees
    assert not compare([-1.0] * 20, [-2.1] + [-1.0] * 19, dtype=dtype).agrees


def test_parity_is_measured_in_the_dtype_that_is_trained_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main("tiny", max_tokens=8, device="cpu", dtype="bfloat16") == 0
    assert "for bfloat16" in capsys.readouterr().out
