"""The conformance kit: each kind of bug is named by its check, and a sound loss passes them all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lossbook
import lossbook.losses.testing as kit
from lossbook.datums.errors import LossCheckError
from lossbook.datums.types import Datum
from lossbook.losses import Loss, PerDatum, Seqs, get_loss, safe_ratio, stats
from lossbook.losses.spec.spec import make_spec
from lossbook.losses.testing import CHECKS, CheckResult, Report, check_loss, laws, run_check

from . import broken_losses as broken
from .hidden_bugs import HIDDEN

#: What a broken loss declares, where that is not per="token".
DECLARED: dict[str, dict[str, Any]] = {
    "weighs_by_place": {"per": "datum"},
    "log_of_sigmoid": {"per": "pair"},
    "normalizes_in_half": {"per": "datum"},
    "prefers_later_partners": {"per": "datum", "couples": "batch"},
    "unlabelled": {"per": "datum"},
    "linear_below_a_cap": {"per": "token", "linear": True},
}

#: Each broken loss, a check that names its bug, and in what words.
BUGS: list[tuple[Callable[..., Any], str, str]] = [
    (broken.local_baseline, "law_micro_batches", "when the data was cut into"),
    (broken.local_baseline, "law_ranks", "when the data was dealt out to"),
    (broken.local_baseline, "law_bound_parts", "when the bound call was cut into"),
    (broken.local_whitening, "law_micro_batches", "when the data was cut into"),
    (broken.share_of_advantage, "law_micro_batches", "to nan when the data was cut into"),
    (broken.refuses_nothing, "law_ranks", "RuntimeError: max()"),
    (broken.reads_neighbour, "law_micro_batches", "parts between tokens"),
    (broken.reads_neighbour, "order", "when the datums were put in order"),
    (broken.centred_per_datum, "law_micro_batches", "parts between tokens"),
    (broken.weighs_by_place, "order", "when the datums were put in order"),
    (broken.log_of_sigmoid, "extreme_logprobs", "the loss is inf when the log-ratio of datum"),
    (broken.uncapped_ratio, "extreme_logprobs", "is +89"),
    (broken.detached, "depends_on_outputs", "does not depend on its logprobs: nothing would be learned"),
    (broken.ratio_of_itself, "depends_on_outputs", "with respect to logprobs is zero everywhere"),
    (broken.dead_setting, "live_config", "'setting entropy_coefficient' is dead"),
    (broken.dead_input, "live_config", "'input ref_logprobs' is dead"),
    (broken.mean_of_means, "metrics_law", "metric 'ratio_mean' (its"),
    (broken.mean_of_means, "law_micro_batches", "metric 'ratio_mean' (its"),
    (broken.names_by_data, "metrics_law", "'rewarded': 'sum'} on all data, but"),
    (broken.names_by_data, "law_ranks", "the metrics rewarded appear in some parts"),
    (broken.float_metric, "metrics_law", "metric 'nll_mean' is a float"),
    (broken.changes_in_place, "pure", "changes its logprobs in place"),
    (broken.changes_input_in_place, "pure", "changes its advantages in place"),
    (broken.wrong_backward, "gradient", "but finite differences give"),
    (broken.reduced, "unreduced", "must return losses of shape"),
    (broken.noisy, "pure", "when the same was computed again"),
    (broken.remembers, "pure", "when the same was computed again"),
    (broken.masks_by_multiplying, "masked_positions", "to nan when masked positions were filled"),
    (broken.half_precision, "gradient", "but finite differences give"),
    (broken.normalizes_in_half, "gradient", "but finite differences give"),
    (broken.cancels, "dtype", "in float32, but"),
    (broken.prefers_later_partners, "order", "when the datums were put in order [1, 0, 3, 2]"),
    (broken.unlabelled, "law_micro_batches", "parts between datums"),
    (broken.linear_below_a_cap, "linear", "it is declared linear, but the gradient of datum 0's logprobs is"),
    (broken.batch_style_in_place, "pure", "output array is read-only"),
    (broken.batch_style_detached, "depends_on_outputs", "with respect to logprobs is zero everywhere"),
]


def loss_of(function: Callable[..., Any]) -> Loss:
    declared = DECLARED.get(function.__name__)
    return get_loss(function) if declared is None else Loss(make_spec(function, function.__name__, **declared), {})


def bug_id(function: Callable[..., Any], check: str, words: str) -> str:
    return f"{check} finds: {(function.__doc__ or '').partition('.')[0]}"


def a_loss(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, *, cap: float = 5.0) -> Any:
    ratio = safe_ratio(logprobs, sampling_logprobs, cap)
    return -ratio * advantages, {"ratio_mean": stats.mean(ratio)}


def batch_style(data: Sequence[Datum], logprobs_list: list[Tensor]) -> Any:
    weights = [d.loss_fn_inputs["weights"].to_torch().to(x) for d, x in zip(data, logprobs_list, strict=True)]
    total = sum((-(w * x).sum() for w, x in zip(weights, logprobs_list, strict=True)), torch.zeros(()))
    return total, {"datums": float(len(data))}


@pytest.mark.parametrize(
    ("function", "check", "words"),
    [
        # Whether a setting is dead is said only after many draws.
        pytest.param(*bug, id=bug_id(*bug), marks=pytest.mark.slow if bug[0] is broken.dead_setting else ())
        for bug in BUGS
    ],
)
def test_a_bug_is_named_by_its_check(function: Callable[..., Any], check: str, words: str) -> None:
    # More examples than usual: hypothesis also draws constants of the modules that happen to be imported.
    result = check_loss(loss_of(function), checks=[check], on_fail="report", max_examples=60)[check]
    assert result.status == "failed"
    assert words in result.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "check"),
    [
        (broken.local_baseline, "law_micro_batches"),
        (broken.reads_neighbour, "law_ranks"),
        (broken.prefers_later_partners, "order"),
        (broken.names_by_data, "metrics_law"),
        (broken.masks_by_multiplying, "masked_positions"),
        (broken.log_of_sigmoid, "extreme_logprobs"),
        (broken.wrong_backward, "gradient"),
        (broken.cancels, "dtype"),
        (broken.remembers, "pure"),
        (broken.reduced, "unreduced"),
        (broken.batch_style_detached, "depends_on_outputs"),
        (broken.dead_input, "live_config"),
        (broken.linear_below_a_cap, "linear"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_reproducer_fails_again_when_it_is_run(function: Callable[..., Any], check: str) -> None:
    result = check_loss(loss_of(function), checks=[check], on_fail="report")[check]
    with pytest.raises(type(result.error)):
        exec(compile(result.reproducer, "reproducer", "exec"), {})


def test_every_check_names_some_bug_or_guards_what_a_loss_cannot_reach() -> None:
    # Weights are applied outside the loss: these three can only fail where the reductions do (tested below), and the fourth
    # where Seqs does (test_hidden_bugs.py).
    out_of_reach = {"weight_linearity", "appended_zero_weight_datum", "weights_by_another_key", "seqs_by_hand"}
    laws_of_families = {check.name for check in laws.CHECKS}  # tested in test_laws.py
    named = {check for _, check, _ in BUGS} | {check for _, check, _, _ in HIDDEN}
    assert named | out_of_reach == {check.name for check in CHECKS} - laws_of_families


@pytest.mark.parametrize(
    ("check", "total", "words"),
    [
        pytest.param(
            "weight_linearity",
            lambda weights, values, datums: values[weights != 0].sum(),
            "when all weights were multiplied by",
            id="weights taken for a mask",
        ),
        pytest.param(
            "appended_zero_weight_datum",
            lambda weights, values, datums: (weights * values).sum() * datums,
            "when a datum of weight 0 was put at place",
            id="all datums counted, the masked too",
        ),
        pytest.param(
            "weights_by_another_key",
            lambda weights, values, datums: (weights * values).sum(),
            "when its weights stood under 'other_weights'",
            id="the usual key, whichever is named",
        ),
    ],
)
def test_a_wrong_reduction_is_found(check: str, total: Any, words: str) -> None:
    class WronglyReduced(Loss):
        def terms(self, data: Any, outputs: Any) -> Any:
            _, metrics = super().terms(data, outputs)
            values = -torch.cat(outputs["logprobs"])
            weights = torch.cat([datum.loss_fn_inputs["weights"].to_torch() for datum in data])
            return total(weights.to(values), values, len(data)), metrics

    loss = WronglyReduced(get_loss(a_loss).spec, {})
    assert words in check_loss(loss, checks=[check], on_fail="report")[check].message


def test_a_bare_function_passes_every_check() -> None:
    report = check_loss(a_loss)
    assert report.passed
    skipped = {"linear", "parameters", "sum_of_parts", "number_types", "repeats", "seqs_by_hand"}
    assert {result.check: result.status for result in report if result.status != "passed"} == dict.fromkeys(
        skipped, "skipped"
    )
    assert [result.check for result in report] == [check.name for check in CHECKS if check not in laws.CHECKS]


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param("importance_sampling", id="a registered id"),
        pytest.param("lossbook.losses.policy:ppo", id="module:function"),
        pytest.param(get_loss("dpo", beta=0.5), id="a configured loss"),
        pytest.param(batch_style, id="fn(data, logprobs_list)"),
        pytest.param(0.5 * get_loss("ppo") + 0.1 * get_loss("cross_entropy"), id="a mixture"),
    ],
)
def test_whatever_get_loss_takes_can_be_checked(loss: Any) -> None:
    assert check_loss(loss, max_examples=3).passed


def test_settings_are_handed_on() -> None:
    report = check_loss(
        "ppo", reduction="seq-mean-token-mean", clip_high=3.0, checks=["law_micro_batches"], max_examples=3
    )
    assert report.loss == "ppo"
    with pytest.raises(ValueError, match="has no setting 'clip_hi'"):
        check_loss("ppo", clip_hi=3.0)


def test_what_is_not_checked_says_why() -> None:
    report = check_loss(batch_style, max_examples=2)
    skipped = {result.check: result.message for result in report if result.status == "skipped"}
    assert skipped["law_micro_batches"] == "it couples the whole batch, so there is no place to cut"
    assert skipped["masked_positions"] == "fn(data, logprobs_list) sees every position and applies weights itself"
    assert all(skipped.values())


def steep(logprobs: Tensor) -> Tensor:
    """Real where a log-probability is, NaN above."""
    return (-logprobs) ** 1.5


def test_a_loss_need_not_be_defined_above_a_logprob_of_zero() -> None:
    outputs = {"logprobs": [torch.tensor([0.0, -0.5], dtype=torch.float64)]}
    data = [Datum(lossbook.ModelInput.from_ints([0, 1]), {"target_tokens": [0, 1], "weights": [1.0, 1.0]})]
    assert torch.isnan(steep(torch.tensor([1e-6]))).all()
    run_check("gradient", loss_of(steep), data=data, outputs=outputs)
    assert check_loss(loss_of(steep), checks=["gradient"]).passed


def test_a_gradient_that_is_stopped_on_purpose_is_not_a_wrong_gradient() -> None:
    def reinforce(logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor) -> Tensor:
        with torch.no_grad():
            ratio = safe_ratio(logprobs, sampling_logprobs)
        return -ratio * advantages * logprobs - 0.1 * logprobs.detach().exp() * logprobs

    assert check_loss(reinforce, checks=["gradient"])["gradient"].status == "passed"


def test_a_kink_is_not_a_wrong_gradient() -> None:
    def hinge(logprobs: Tensor) -> Tensor:
        return (-logprobs - 1).relu() + (logprobs + 0.5).abs()  # both kinks lie on the grid

    assert check_loss(hinge, checks=["gradient"], max_examples=40).passed


def test_a_setting_that_has_an_effect_only_beside_another_passes() -> None:
    def smoothed(logprobs: Tensor, *, coefficient: float = 0.0, power: float = 2.0) -> Tensor:
        return -logprobs + coefficient * logprobs.abs() ** power

    assert check_loss(smoothed, checks=["live_config"]).passed


def test_an_expected_failure_is_no_failure() -> None:
    excuses = {"extreme_logprobs": "exact ratios are wanted"}
    report = check_loss(broken.uncapped_ratio, expected_failed_checks=excuses, checks=["order", "extreme_logprobs"])
    assert report["extreme_logprobs"].status == "expected-failure"
    assert report["extreme_logprobs"].message == "exact ratios are wanted"


@pytest.mark.parametrize(
    ("check", "loss", "reason"),
    [("gradient", a_loss, "but it passes"), ("order", batch_style, "but it is skipped: fn")],
)
def test_a_stale_excuse_is_a_failure(check: str, loss: Any, reason: str) -> None:
    with pytest.raises(LossCheckError, match=f"stale excuse: {check} was expected to fail \\(old bug\\), {reason}"):
        check_loss(loss, expected_failed_checks={check: "old bug"}, checks=[check], max_examples=3)


def test_an_excuse_for_an_unknown_check_is_refused() -> None:
    with pytest.raises(LossCheckError, match=r"^there is no check 'gradients'\. Did you mean 'gradient'\? Checks: "):
        check_loss(a_loss, expected_failed_checks={"gradients": "?"})


def test_the_error_names_the_checks_and_holds_the_report() -> None:
    with pytest.raises(LossCheckError) as caught:
        check_loss(broken.detached, checks=["depends_on_outputs", "gradient"])
    assert str(caught.value).startswith(
        "detached fails 1 of 2 checks\nfailed           depends_on_outputs: the loss does not"
    )
    assert "run_check(\n        'depends_on_outputs',\n        loss," in str(caught.value)
    assert isinstance(caught.value.report, Report)
    assert [result.check for result in caught.value.report.failures] == ["depends_on_outputs"]


def test_a_report_prints_one_line_per_check() -> None:
    report = check_loss("cross_entropy", checks=["order", "live_config"], max_examples=2)
    assert str(report).splitlines() == [
        "cross_entropy: 1 passed, 1 skipped",
        "passed           order",
        "skipped          live_config: it has no settings and reads no inputs",
    ]


def test_the_callback_gets_each_result() -> None:
    seen: list[CheckResult] = []
    report = check_loss(a_loss, checks=["order", "pure"], callback=seen.append, max_examples=2)
    assert tuple(seen) == report.results


def test_nothing_more_is_checked_of_a_loss_that_breaks_its_contract() -> None:
    report = check_loss(broken.reduced, on_fail="report")
    assert [result.check for result in report.failures] == ["unreduced"]
    assert "must return losses of shape" in report["unreduced"].message
    assert report["gradient"].message == "not run, because the loss breaks its contract: see unreduced"


def test_a_loss_that_accepts_no_batch_is_reported() -> None:
    def refuses(data: Any, logprobs_list: Any) -> Any:
        raise ValueError("no")

    report = check_loss(refuses, on_fail="report")
    assert not report.passed
    assert "accepts no batch of 1 to 8 datums; the last error: ValueError: no" in report["unreduced"].message


def test_the_batch_sizes_that_a_loss_accepts_are_tried() -> None:
    def pairs_up(data: Any, logprobs_list: list[Tensor]) -> Any:
        if len(data) % 2 or not data:
            raise IndexError("pairs only")
        return -torch.cat(logprobs_list).sum(), {}

    assert check_loss(pairs_up, max_examples=3).passed


def test_an_input_is_drawn_from_the_values_given_for_it() -> None:
    def labelled(logprobs: Tensor, kind: PerDatum, seqs: Seqs) -> Tensor:
        assert set(kind.tolist()) <= {3.0, 5.0}
        return -seqs.sum(logprobs) * kind

    loss = Loss(make_spec(labelled, "labelled", per="datum"), {})
    assert check_loss(loss, inputs={"kind": (3, 5)}, max_examples=3).passed


def test_a_reproducer_of_a_local_function_says_that_it_must_be_defined() -> None:
    def local(logprobs: Tensor) -> Tensor:
        return -logprobs.mean() + 0 * logprobs

    result = check_loss(local, checks=["law_micro_batches"], on_fail="report")["law_micro_batches"]
    assert "# define local, the loss itself: it cannot be imported by that name" in result.reproducer
    with pytest.raises(LossCheckError, match="when the data was cut into 2 parts between tokens"):
        exec(compile(result.reproducer, "reproducer", "exec"), {"local": local})


def test_a_reproducer_keeps_the_settings() -> None:
    loss = 2.0 * get_loss("ppo", clip_high=1.5) + 1.0 * get_loss(broken.local_baseline)
    result = check_loss(loss, checks=["law_micro_batches"], on_fail="report")["law_micro_batches"]
    assert "loss = 2.0 * get_loss('ppo', clip_high=1.5) + 1.0 * get_loss(local_baseline)\n" in result.reproducer
    with pytest.raises(LossCheckError, match="when the data was cut"):
        exec(compile(result.reproducer, "reproducer", "exec"), {})


def test_an_unknown_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSBOOK_PROFILE", "thorough")
    with pytest.raises(LossCheckError, match="'thorough' is none of ci, dev, nightly"):
        check_loss(a_loss)


def test_a_check_runs_on_one_example() -> None:
    data = [Datum([0, 1], {"target_tokens": [0, 1], "advantages": [1.0, -1.0]})]
    run_check("law_micro_batches", _without_ratio, data=data, outputs={"logprobs": [[-1.0, -2.0]]}, cuts=[1])
    with pytest.raises(LossCheckError, match=r"^the total changed from -2 to 0 when the data was cut into 2 parts"):
        run_check("law_micro_batches", broken.local_baseline, data=data, outputs={"logprobs": [[-1.0, -3.0]]}, cuts=[1])


def _without_ratio(logprobs: Tensor, advantages: Tensor) -> Tensor:
    return -logprobs * advantages


def test_the_same_examples_are_drawn_every_time_under_ci() -> None:
    def failing(logprobs: Tensor) -> Tensor:
        return -logprobs * logprobs.sum()

    first, second = (check_loss(failing, checks=["law_micro_batches"], on_fail="report") for _ in range(2))
    assert first.results[0].reproducer == second.results[0].reproducer


def test_the_example_of_the_docstring_runs() -> None:
    source = re.search(r"\n\n((?:    .*\n|\n)+)", kit.__doc__ or "")
    assert source is not None
    exec(compile(textwrap.dedent(source.group(1)), "docstring", "exec"), {"__name__": "docstring"})


def test_public_names_are_those_that_can_be_imported() -> None:
    assert sorted(kit.__all__) == dir(kit)
    assert all(getattr(kit, name) is not None for name in kit.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'check_losses'"):
        kit.check_losses  # noqa: B018


PLUGIN = "lossbook.losses.testing.plugin"


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in another folder that imports the same lossbook, with one thread."""
    where = str(Path(lossbook.__file__).parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([where, os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_test_module_of_a_user_gets_one_case_per_check(tmp_path: Path) -> None:
    source = """
        import os
        from lossbook.losses.testing import parametrize_with_checks

        def likelihood(logprobs):
            return -logprobs

        def baseline(logprobs, advantages):
            return -logprobs * (advantages - advantages.mean())

        EXCUSES = {"baseline": {"law_micro_batches": "local on purpose", "pure": "stale"}}

        @parametrize_with_checks([likelihood, baseline], checks=["law_micro_batches", "pure", "live_config"],
                                 expected_failed_checks=EXCUSES, max_examples=4)
        def test_laws(loss, check):
            check(loss)

        def test_fixture(check_loss):
            assert os.environ["LOSSBOOK_PROFILE"] == "dev"
            assert check_loss(likelihood, max_examples=2).passed
    """
    (tmp_path / "test_mine.py").write_text(textwrap.dedent(source), encoding="utf-8")
    done = run_python(tmp_path, "-m", "pytest", "-q", "-rA", "-p", PLUGIN, "--lossbook-profile", "dev", "test_mine.py")
    assert "PASSED test_mine.py::test_laws[likelihood-law_micro_batches]" in done.stdout, done.stdout + done.stderr
    assert "XFAIL test_mine.py::test_laws[baseline-law_micro_batches] - local on purpose" in done.stdout
    assert "FAILED test_mine.py::test_laws[baseline-pure]" in done.stdout
    assert "stale excuse: pure was expected to fail (stale), but it passes" in done.stdout
    assert "likelihood-live_config" not in done.stdout  # nothing to check there
    assert "1 failed, 4 passed, 1 xfailed" in done.stdout


def test_the_plugin_does_not_load_the_kit(tmp_path: Path) -> None:
    code = f"import sys, {PLUGIN}; print([m for m in sys.modules if 'hypothesis' in m or 'testing.run' in m])"
    done = run_python(tmp_path, "-c", code)
    assert done.stdout.strip() == "[]", done.stderr
