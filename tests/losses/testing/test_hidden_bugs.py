"""Bugs that one check of the kit reports and every other check passes; and that the loss without the bug passes them all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lossbook import Datum
from lossbook.losses import Seqs, get_loss
from lossbook.losses.testing import check_loss

from . import hidden_bugs as hidden

#: Bugs that other checks meet as well: while gradients are off, nothing has one, and many datums are a micro-batch as well.
MET_BY_OTHERS = ("leaves_gradients_off", "drops_far_off_responses")


IDS = [f"{check}-{loss.name}" for loss, check, _, _ in hidden.HIDDEN]


@pytest.mark.parametrize(("loss", "check", "words"), [bug[:3] for bug in hidden.HIDDEN], ids=IDS)
def test_a_hidden_bug_is_reported_by_its_check(loss: Any, check: str, words: str) -> None:
    assert words in check_loss(loss, checks=[check], on_fail="report")[check].message


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "check", "words", "right"), hidden.HIDDEN, ids=IDS)
def test_no_other_check_reports_it_and_the_loss_without_it_passes_all(
    loss: Any, check: str, words: str, right: Any
) -> None:
    others = check_loss(loss, on_fail="report", max_examples=5).failures
    assert {result.check for result in others} <= {check} or loss.name in MET_BY_OTHERS
    assert right is None or check_loss(right, max_examples=5).passed


@pytest.mark.parametrize(
    "loss", [hidden._per_datum(hidden.rated_above), hidden._per_datum(hidden.counted_above)], ids=lambda x: x.name
)
def test_a_loss_over_booleans_or_integers_passes(loss: Any) -> None:
    assert check_loss(loss, max_examples=2).passed


def test_sums_of_booleans_that_stay_booleans_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def plain_sum(self: Seqs, values: Tensor) -> Tensor:  # as it once was
        return values.new_zeros((self.count, *values.shape[1:])).index_add(0, self.index, values)

    monkeypatch.setattr(Seqs, "plain_sum", plain_sum)
    monkeypatch.setattr(Seqs, "sum", lambda self, values: plain_sum(self, values * self._weights.to(values)))
    loss = hidden._per_datum(hidden.counted_above)
    assert (
        "when its sums were taken by hand"
        in check_loss(loss, checks=["seqs_by_hand"], on_fail="report")["seqs_by_hand"].message
    )


def test_a_loss_that_leaves_gradients_off_or_another_dtype_spoils_nothing_else() -> None:
    for loss in (hidden.leaves_gradients_off, hidden.in_another_dtype):
        check_loss(loss, on_fail="report", checks=["pure", "order"], max_examples=2)
        assert torch.is_grad_enabled()
        assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_parts_of_a_mixture_are_checked_for_what_only_a_part_can_show() -> None:
    def dead_setting(logprobs: Tensor, *, scale: float = 1.0) -> Tensor:
        return -logprobs

    names = ["sum_of_parts", "live_config", "weight_linearity", "is_another_loss"]
    report = check_loss(get_loss(dead_setting) + 0.5 * get_loss("ppo"), checks=names, on_fail="report", max_examples=2)
    assert [result.check for result in report.failures] == ["dead_setting/live_config"]
    excused = {"dead_setting/live_config": "old"}
    assert check_loss(
        get_loss(dead_setting) + 0.5 * get_loss("ppo"), checks=names, expected_failed_checks=excused, max_examples=2
    ).passed
    assert {"sum_of_parts", "ppo/live_config", "ppo/weight_linearity", "ppo/is_another_loss"} <= {
        r.check for r in report
    }


def test_an_exception_that_a_loss_states_is_no_failure_and_is_shown() -> None:
    result = check_loss("ld_dpo", checks=["repeats"])["repeats"]
    assert (result.status, result.message) == (
        "skipped",
        "the loss says why not: a token counts for less beyond the length of the shorter response",
    )


def test_sampled_logprobs_are_sometimes_near_the_policys() -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from lossbook.losses.testing import strategies

    differences: list[float] = []

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(draw: st.DataObject) -> None:
        data: list[Datum] = draw.draw(strategies.datums("ppo"))
        outputs = draw.draw(strategies.outputs("ppo", data))
        for datum, logprobs in zip(data, outputs["logprobs"], strict=True):
            differences.append(float((logprobs - datum.loss_fn_inputs["sampling_logprobs"].to_torch()).abs().max()))

    collect()
    near = sum(difference <= 1 / 8 for difference in differences) / len(differences)
    assert 0.2 < near < 0.8
