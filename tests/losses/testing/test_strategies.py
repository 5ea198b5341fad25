"""What the conformance kit draws: data that losses take, and every kind of it that has broken a loss somewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lossbook import Datum, get_loss, list_losses
from lossbook.losses.testing import strategies

from ..cases import with_needed

few = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", list_losses())
@given(data=st.data())
@settings(few, max_examples=6)
def test_drawn_data_is_data_that_the_loss_takes(name: str, data: st.DataObject) -> None:
    loss = with_needed(name)
    drawn = data.draw(strategies.datums(loss))
    outputs = data.draw(strategies.outputs(loss, drawn))
    assert not loss.check(drawn, strict=True).is_zero
    value, _ = loss(drawn, outputs)
    assert torch.isfinite(value)
    assert all(bool((x <= 0).all()) for x in outputs.get("logprobs", []))


@given(data=st.data())
@few
def test_drawn_preference_pairs_are_pairs(data: st.DataObject) -> None:
    pairs = data.draw(strategies.preference_pairs())
    assert len(pairs) % 2 == 0
    active = [bool(d.loss_fn_inputs["weights"].to_numpy().any()) for d in pairs]
    assert active[0::2] == active[1::2]
    outputs = data.draw(strategies.logprobs(pairs))
    assert [len(x) for x in outputs] == [d.model_input.length for d in pairs]


@given(data=st.data())
@few
def test_drawn_trajectories_carry_what_policy_losses_read(data: st.DataObject) -> None:
    for datum in data.draw(strategies.trajectories(max_datums=2)):
        assert {"weights", "sampling_logprobs", "advantages"} <= datum.loss_fn_inputs.keys()


@given(data=st.data())
@few
def test_drawn_candidates_are_what_a_teacher_may_have_said(data: st.DataObject) -> None:
    datums = data.draw(strategies.topk_targets())
    assert len(datums) <= 4
    for datum in datums:
        teacher = datum.loss_fn_inputs["teacher_logprobs"].to_torch()
        assert list(teacher.shape) == datum.loss_fn_inputs["target_tokens"].shape
        assert datum.loss_fn_inputs["weights"].shape == [len(teacher)]
        assert bool((teacher.exp().sum(1) < 1).all())
        assert bool((teacher > -math.inf).any(1).all())


def test_drawn_candidates_are_absent_in_some_rows_and_not_as_many_in_every_datum() -> None:
    batches = drawn("topk_forward_kl")
    teachers = [[d.loss_fn_inputs["teacher_logprobs"].to_torch() for d in batch] for batch in batches]
    assert any(bool((t == -math.inf).any()) for batch in teachers for t in batch)
    assert any(len({t.shape[1] for t in batch}) > 1 for batch in teachers)


def drawn(loss: Any, count: int = 150, **options: Any) -> list[list[Datum]]:
    batches: list[list[Datum]] = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategies.datums(loss, **options))
    def collect(data: list[Datum]) -> None:
        batches.append(data)

    collect()
    return batches


def weights_of(batch: list[Datum]) -> list[Any]:
    return [d.loss_fn_inputs["weights"].to_numpy() for d in batch if "weights" in d.loss_fn_inputs]


@pytest.mark.parametrize(
    ("loss", "shows"),
    [
        pytest.param("ppo", lambda b: any(d.model_input.length == 1 for d in b), id="a sequence of one token"),
        pytest.param("ppo", lambda b: len({d.model_input.length for d in b}) > 1, id="ragged lengths"),
        pytest.param("ppo", lambda b: any((w == 0).any() and w.any() for w in weights_of(b)), id="a masked token"),
        pytest.param("ppo", lambda b: any(not w.any() for w in weights_of(b)), id="a datum of weight 0"),
        pytest.param("ppo", lambda b: any((w == 0.25).any() for w in weights_of(b)), id="fractional weights"),
        pytest.param("ppo", lambda b: any((w < 0).any() for w in weights_of(b)), id="negative weights under sum"),
        pytest.param("ppo", lambda b: not weights_of(b), id="no weights under sum"),
        pytest.param("ppo", lambda b: "clip_low_threshold" in b[0].loss_fn_inputs, id="an optional input"),
        pytest.param("ppo", lambda b: "clip_low_threshold" not in b[0].loss_fn_inputs, id="no optional input"),
        pytest.param("dpo", lambda b: any(not w.any() for w in weights_of(b)), id="a pair of weight 0"),
        pytest.param("cross_entropy", lambda b: any(w.ndim == 2 for w in weights_of(b)), id="two targets a position"),
        pytest.param("info_nce", lambda b: len(b) >= 6, id="three partners"),
    ],
)
def test_the_strategies_reach(loss: str, shows: Callable[[list[Datum]], bool]) -> None:
    assert any(shows(batch) for batch in drawn(loss))


def test_no_drawn_weight_is_negative_where_a_mean_divides_by_it() -> None:
    assert all((w >= 0).all() for batch in drawn(get_loss("grpo")) for w in weights_of(batch))


def test_thresholds_are_drawn_within_their_meaning() -> None:
    for batch in drawn("ppo", 40):
        for datum in batch:
            if (low := datum.loss_fn_inputs.get("clip_low_threshold")) is not None:
                assert (low.to_numpy() >= 0).all()
                assert (low.to_numpy() <= 1).all()
            if (high := datum.loss_fn_inputs.get("clip_high_threshold")) is not None:
                assert (high.to_numpy() >= 1).all()


def test_the_former_names_of_the_number_of_groups_are_still_accepted() -> None:
    pairs = drawn("dpo", count=10, min_units=2, max_units=2)
    assert {len(batch) for batch in pairs} == {4}
