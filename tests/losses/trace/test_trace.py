"""A traced loss: which inputs it has, and the same loss times a number of each datum."""

from __future__ import annotations

import pytest
import torch

from lossbook import get_loss
from lossbook.datums.errors import TraceError


def test_a_traced_loss_times_a_number_of_its_datum_has_that_number_as_its_last_input() -> None:
    traced = get_loss("importance_sampling").trace()
    shared = traced.scaled("share")
    assert traced.inputs == ("sampling_logprobs", "advantages", "weights")
    assert shared.inputs == (*traced.inputs, "share")
    assert shared.ranks == {**traced.ranks, "share": 0}
    given = [torch.tensor(row) for row in ([-1.0, -2.0, -5.0], [-1.0, -2.0, -3.0], [2.0, -1.0, 4.0], [1.0, 0.5, 0.0])]
    # ratios of 1 where the weight is not 0: -(2 - 0.5)
    value, metrics = traced(*given)
    share, same = shared(*given, torch.tensor(0.25))
    assert (value, share) == (-1.5, -0.375)
    assert {name: float(one) for name, one in same.items()} == {name: float(one) for name, one in metrics.items()}
    assert "share" in str(shared)
    assert "share" not in str(traced)
    placeholders = [node.target for node in shared.graph.nodes if node.op == "placeholder"]
    assert placeholders == ["logprobs", *shared.inputs]


def test_a_trace_reads_what_is_required_what_a_setting_requires_and_what_is_asked_for() -> None:
    without, with_kl = (get_loss("grpo", reduction="sum", kl_coefficient=one).trace() for one in (0.0, 0.1))
    assert without.inputs == ("sampling_logprobs", "advantages", "weights")
    assert set(with_kl.inputs) == {*without.inputs, "ref_logprobs"}
    asked = get_loss("grpo", reduction="sum", kl_coefficient=0.0).trace(["ref_logprobs"])
    assert set(asked.inputs) == set(with_kl.inputs)
    with pytest.raises(TraceError, match=r"grpo has no optional input 'reference'\..* It has: \['ref_logprobs'"):
        get_loss("grpo", reduction="sum").trace(["reference"])
    with pytest.raises(TraceError, match="grpo has no optional input 'advantages'"):
        get_loss("grpo", reduction="sum").trace(["ref_logprobs", "advantages"])
