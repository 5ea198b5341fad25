"""Models of every kind of position, state, mask and expert on two ranks, one of which may have nothing to do but read one token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lossbook import Datum, ModelInput
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.sharding.shard import shard_model
from tests.trainer.kinds import KINDS, SIZES, model_of

from .calls import Call, Result, budget_of, call_of, differences, loss_of, outputs_by_index, taken_gradients
from .processes import RankProcesses


def within(call: Call, vocabulary: int) -> Call:
    """The call with tokens that a small model knows."""
    data = [
        Datum(
            ModelInput.from_ints([token % vocabulary for token in datum.model_input.to_ints()]),
            {**datum.loss_fn_inputs, "target_tokens": datum.loss_fn_inputs["target_tokens"].to_numpy() % vocabulary},
        )
        for datum in call.data
    ]
    return replace(call, data=data)


def run_kind(ranks: Ranks, kind: str, calls: list[Call]) -> list[Result]:
    model = shard_model(model_of(KINDS[kind]()).train_all_weights(), ranks)
    engine, results = Engine(model, EngineSettings()), []
    for call in calls:
        budget = budget_of(call, 2, padded=engine.settings.batching == "padded")
        engine.settings = replace(engine.settings, tokens_per_micro_batch=budget)
        output = engine.forward_backward(call.data, loss_of(call.loss))
        results.append(Result(output.metrics, outputs_by_index(output.loss_fn_outputs), taken_gradients(model)))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_has_one_process_numbers_on_two_ranks(ranks: RankProcesses, kind: str) -> None:
    many = within(call_of("cross_entropy", count=4), SIZES["vocab_size"])
    calls = [many, replace(many, data=many.data[-1:])]
    if kind == "a rotation that switches at 32 tokens":  # sequences on either side of it run apart
        calls.append(within(call_of("cross_entropy", count=40, length=40), SIZES["vocab_size"]))
        calls.append(replace(calls[-1], data=calls[-1].data[-12:-5]))
    several = ranks.run(run_kind, kind, calls)
    for k, alone in enumerate(run_kind(ALONE, kind, calls)):
        one = differences([own[k] for own in several], alone)
        assert max(one.loss, one.metrics, one.outputs, one.gradients) <= 1e-5, one
