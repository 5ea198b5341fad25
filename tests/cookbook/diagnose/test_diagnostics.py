"""Each diagnostic reports a curve that shows its problem, and is silent on a healthy one."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import get_loss
from lossbook.cookbook.diagnose.diagnostics import DIAGNOSTICS, diagnose
from lossbook.cookbook.diagnose.history import History, read_history
from lossbook.cookbook.inspect.token_records import record_loss
from lossbook.cookbook.run.runs import open_run

STEPS = 50


def run(settings: dict[str, Any] | None = None, **curves: Callable[[int], float] | float) -> History:
    """A run of STEPS steps whose numbers are functions of the step."""
    rows = [
        {"step": t, **{key: float(curve(t) if callable(curve) else curve) for key, curve in curves.items()}}
        for t in range(1, STEPS + 1)
    ]
    return History(rows, settings or {})


def wave(t: int) -> float:
    """Something between -1 and 1 that looks like noise."""
    return math.sin(7.3 * t * t)


def line(start: float, end: float, noise: float = 0.0) -> Callable[[int], float]:
    """From start to end over the run."""
    return lambda t: start + (end - start) * (t - 1) / (STEPS - 1) + noise * wave(t)


def of_data(**report: Any) -> History:
    """A run of 100 rows with this in its data report."""
    return History([], {"max_length": 512}, {"rows": 100, **report})


SEVERAL_UPDATES = {"minibatches": 4, "passes": 1}
HEALTHY = {
    "sft": run(
        {"loss": "cross_entropy"},
        loss=line(2.5, 0.8, 0.1),
        nll=line(2.5, 0.8, 0.1),
        held_out_nll=line(2.6, 1.1, 0.01),
        grad_norm=line(2.0, 0.6, 0.3),
        grad_norm_clipped=lambda t: min(line(2.0, 0.6, 0.3)(t), 1.0),
    ),
    "rl": run(
        SEVERAL_UPDATES,
        loss=lambda t: 0.1 * wave(t),
        reward=line(0.2, 0.8, 0.1),
        held_out_score=line(0.2, 0.8),
        ref_kl=line(0.0, 0.05, 0.01),
        clip_fraction=lambda t: 0.05 + 0.03 * wave(t),
        sampler_entropy=line(1.5, 0.9, 0.1),
        mismatch_k3=3e-5,
        zero_advantage_groups=line(0.3, 0.5, 0.1),
        truncated_fraction=0.05,
        response_length=line(40, 60, 3),
        grad_norm=lambda t: 0.5 + 0.2 * wave(t),
    ),
    "rl with one update a step": run(
        {"minibatches": 1, "passes": 1, "off_policy_steps": 0}, reward=line(0.2, 0.8, 0.1), clip_fraction=0.0
    ),
    "dpo": run(
        {"loss": "dpo"},
        loss=line(0.69, 0.4, 0.02),
        accuracy=line(0.5, 0.8, 0.05),
        chosen_reward=line(0.0, 0.4, 0.05),
        rejected_reward=line(0.0, -0.6, 0.05),
    ),
    "embed": run(
        {"loss": "info_nce"}, loss=line(math.log(8), 0.5, 0.05), datums=16.0, in_batch_recall_at_1=line(0.2, 0.9)
    ),
}
#: Part of a diagnosis's title, and a run that must get it.
TROUBLE = [
    ("not finite", run(loss=lambda t: math.nan if t == 30 else 1.0)),
    ("not finite", run(grad_norm=lambda t: math.inf if t > 30 else 1.0)),
    ("spikes", run(grad_norm=lambda t: 12.0 if t == 40 else 1.0 + 0.3 * wave(t))),
    ("Every gradient is clipped", run(grad_norm=5.0, grad_norm_clipped=1.0)),
    ("overfits", run(nll=line(2.5, 0.1), held_out_nll=lambda t: 1.5 + abs(t - 20) / 50)),
    ("the model gets worse", run(loss=line(0.1, 0.0), nll=line(5, 8), held_out_nll=line(6, 7))),
    ("the model gets worse", run(loss=line(0.1, 0.0), held_out_nll=line(6, 7))),
    ("runs away", run(ref_kl=line(0.0, 0.5), response_length=60.0, reward=line(0, 1))),
    ("runs away", run(ref_kl=line(0.0, 0.2))),
    ("Many tokens are clipped", run(clip_fraction=line(0.1, 0.5))),
    ("Many tokens are clipped", History([{"step": t, "ppo/clip_fraction": 0.6} for t in range(20)])),
    ("clip never binds", run(SEVERAL_UPDATES, clip_fraction=0.0)),
    ("clip never binds", run({"off_policy_steps": 1}, clip_fraction=0.0)),
    ("Entropy collapses", run(sampler_entropy=lambda t: 2 * math.exp(-t / 8), reward=line(0, 1))),
    ("not the same policy", run(mismatch_k3=lambda t: 0.02 + 0.005 * wave(t))),
    ("not the same policy", run(mismatch_k1=lambda t: -0.3)),
    ("no learning signal", run(zero_advantage_groups=line(0.5, 1.0))),
    ("reward never changes", run(reward=0.0)),
    ("cut off", run(truncated_fraction=line(0.1, 0.6))),
    ("change in length", run(response_length=line(30, 90))),
    ("change in length", run(response_length=line(90, 30))),
    ("Chosen answers become less likely", run(chosen_reward=line(0, -2, 0.1), rejected_reward=line(0, -4, 0.1))),
    (
        "Chosen answers become less likely",
        run(held_out_chosen_change=line(0, -5), held_out_rejected_change=line(0, -9)),
    ),
    ("Held-out rows are trained on", of_data(in_held_out={"count": 2, "examples": ["eval, line 1 is train, line 7"]})),
    ("Held-out rows are trained on", of_data(held_out_rows=50, held_out_seen=3)),
    ("Training rows are repeated", of_data(repeated={"count": 2, "examples": ["line 2 repeats line 1"]})),
    ("Rows are truncated", of_data(problems={"truncated": {"count": 9, "examples": ["line 4"]}}, truncated=9)),
    ("Rows are left out", of_data(dropped=1, problems={"ShapeError": {"count": 1, "examples": ["line 3: ..."]}})),
    ("Parts of the rows have no effect", of_data(unread={"key 'wieght'": {"count": 4, "examples": ["line 1"]}})),
    (
        "do not tell documents apart",
        run({"loss": "info_nce"}, loss=lambda t: math.log(8) + 0.05 * wave(t), datums=16.0, in_batch_recall_at_1=0.13),
    ),
]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_has_no_diagnosis(name: str) -> None:
    assert diagnose(HEALTHY[name]) == []


@pytest.mark.parametrize(("title", "history"), TROUBLE)
def test_a_run_in_trouble_gets_evidence_advice_and_reason(title: str, history: History) -> None:
    (diagnosis,) = diagnose(history)
    assert title in diagnosis.title
    assert diagnosis.evidence
    assert diagnosis.advice
    assert diagnosis.reason


#: Settings that a run can have, and losses with their settings.
SETTINGS = {
    "grad_clip_norm": [0.0, 1.0],
    "warmup_steps": [0, 10, 40],
    "kl_coefficient": [None, 0.05, 0.1],
    "off_policy_steps": [0, 1],
    "minibatches": [1, 4],
    "passes": [1, 2],
    "rollout_correction": [None, "token_truncate"],
    "dynamic_sampling": [0, 1, 2],
    "group_size": [8],
    "max_tokens": [64],
    "max_length": [None, 512],
    "overlong": ["keep", "mask", "soft"],
    "start_from": [None, "runs/sft"],
    "epochs": [1, 3],
    "save_every": [0, 20],
    "all_weights": [False, True],
    "rank": [16],
    "learning_rate": [1e-4],
}
LOSSES = [
    {"loss": "grpo"},
    {"loss": "dapo"},
    {"loss": "ppo", "loss_config": {"clip_high": 1.5, "reduction": "token-mean"}},
    {"loss": "dr_grpo", "loss_config": {"norm_length": 64}},
    {"loss": "cpo"},
    {"loss": "orpo", "loss_config": {"beta": 0.3}},
    {"loss": "cross_entropy"},
    {"loss": "info_nce", "loss_config": {"temperature": 0.05}},
    {"loss": "multiple_negatives_ranking"},
    {"loss": "mine:loss", "loss_config": {"clip_high": 1.28}},
]
CHOICES = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SETTINGS.items()})


@settings(max_examples=60)
@given(st.integers(0, len(TROUBLE) - 1), CHOICES, st.sampled_from(LOSSES))
def test_no_advice_proposes_what_the_run_has_already(trouble: int, given: dict[str, Any], loss: dict[str, Any]) -> None:
    history = TROUBLE[trouble][1]
    history = dataclasses.replace(history, settings={**given, **loss, **history.settings})
    has = {**history.settings, **history.loss_settings()}
    for diagnosis in diagnose(history):
        for name, value in has.items():
            proposed = re.findall(rf"\b{name},? (?:such as |to |from [\d.]+ to )?([\w.-]*\w)", diagnosis.advice)
            assert str(value) not in proposed, diagnosis.advice
            if isinstance(value, float):
                assert f"{value:g}" not in proposed, diagnosis.advice
        for choice in ("overlong", "reduction"):
            named = re.findall(rf"{choice} ([^;:]*)", diagnosis.advice)
            assert not any(str(has.get(choice)) in re.split(r"[ ,()]+", text) for text in named), diagnosis.advice
        other = re.findall(r"answers \(([^)]*)\)|data \(([^)]*)\)", diagnosis.advice)
        assert not any(has["loss"] in re.split(r"[ ,]+", "".join(text)) for text in other), diagnosis.advice


def test_a_dapo_run_is_not_told_to_take_dapos_bound() -> None:
    collapse = {"sampler_entropy": lambda t: 2 * math.exp(-t / 8), "reward": line(0, 1)}
    (grpo,), (dapo,), (own,), (none,) = (
        diagnose(run({"loss": loss, "loss_config": config}, **collapse))
        for loss, config in (("grpo", {}), ("dapo", {}), ("ppo", {"clip_high": 1.5}), ("reinforce", {}))
    )
    assert "aise clip_high from 1.2 to 1.28, as dapo has it;" in grpo.advice
    assert "aise clip_high from 1.28;" in dapo.advice
    assert "aise clip_high from 1.5;" in own.advice
    assert "clip" not in none.advice
    assert "aise the upper clip bound" in diagnose(run({}, **collapse))[0].advice  # of an unknown loss


def test_the_loss_that_a_run_recorded_counts_and_not_its_defaults(tmp_path: Path) -> None:
    made = open_run(tmp_path / "run", {"loss": "mine:loss"})
    record_loss(made, get_loss("dapo", clip_high=1.4) + 0.5 * get_loss("entropy_bonus"))
    made.log(1, {"loss": 1.0})
    history = read_history(made.path)
    assert history.loss_settings()["clip_high"] == 1.4
    assert history.loss_names() == {"dapo", "entropy_bonus"}


@pytest.mark.parametrize("damage", [{"repeated": "many"}, {"problems": [1]}, {"unread": {"a": 3}}, {"dropped": "x"}])
def test_a_report_of_another_form_is_no_error(damage: dict[str, Any]) -> None:
    diagnose(of_data(**damage))


def test_every_diagnostic_reports_one_of_these_runs() -> None:
    silent = [check.__name__ for check in DIAGNOSTICS if not any(check(history) for _, history in TROUBLE)]
    assert silent == []


def test_the_worst_comes_first() -> None:
    diagnoses = diagnose(run(grad_norm=5.0, grad_norm_clipped=1.0, clip_fraction=0.5, loss=math.nan))
    assert [diagnosis.level for diagnosis in diagnoses] == ["problem", "warning", "note"]


@pytest.mark.parametrize(
    ("name", "history"),
    [
        ("an early bump is no spike of later steps", run(grad_norm=lambda t: 20.0 if t < 4 else 1.0)),
        (
            "clipped in the first half only",
            run(grad_norm=line(2, 0), grad_norm_clipped=lambda t: min(line(2, 0)(t), 1)),
        ),
        ("held-out loss at its best at the end", run(nll=line(2, 1), held_out_nll=line(3, 1))),
        ("both rise: the data changed, not the fit", run(nll=line(1, 2), held_out_nll=line(1, 2))),
        ("far from its reference but coming back", run(ref_kl=line(0.5, 0.2))),
        ("the rejected fall, the chosen hardly", run(chosen_reward=line(0, -0.1), rejected_reward=line(0, -4))),
        ("nothing can be said about three steps", History([{"step": t, "clip_fraction": 1.0} for t in range(3)])),
        ("scores of a reward model", run(chosen_reward=line(0, -2), rejected_reward=line(0, -4), score_min=-5.0)),
        ("nothing was recorded", History([])),
        ("a mean of nothing is not broken", run(ref_kl=math.nan, nll=1.0)),
    ],
)
def test_a_similar_but_healthy_run_has_no_diagnosis(name: str, history: History) -> None:
    assert diagnose(history) == []


def test_a_fifth_of_a_curve_is_its_beginning_and_its_end() -> None:
    series = History([{"step": t, "loss": v} for t, v in enumerate([1, 3, 5, 5, 5, 5, 5, math.nan, 5, 7, 9])]).series(
        "loss"
    )
    assert (series.early, series.late, series.last) == (2.0, 8.0, 9.0)
    np.testing.assert_array_equal(series.steps, [0, 1, 2, 3, 4, 5, 6, 8, 9, 10])


def test_the_guide_lists_every_diagnosis() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "reports.md").read_text("utf-8")
    listed = set(re.findall(r"^\| ([A-Z][^|]*?) \|", guide, re.MULTILINE))
    assert listed == {diagnosis.title for _, history in TROUBLE for diagnosis in diagnose(history)}


def test_the_guides_example_runs() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "reports.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/reports.md", "exec"), {})
