"""What else the engine does on ranks: forwards, likeliest tokens, random numbers, and mistakes that one rank alone sees."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lossbook import Datum, ModelInput, register_loss, unregister_loss
from lossbook.datums.errors import LossContractError, MissingInput, ModelError
from lossbook.losses.loss.loss import Loss, LossLike
from lossbook.losses.registry import get_loss, spec_of_function
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.ranks import ALONE, Ranks
from lossbook.trainer.responses import TopLogprobs
from lossbook.trainer.sharding.shard import shard_model

from .calls import (
    Call,
    Numbers,
    Result,
    Setup,
    call_of,
    differences,
    engine_of,
    loss_of,
    outputs_by_index,
    relative,
    run_calls,
    taken_gradients,
)
from .processes import RankProcesses

SLOW = pytest.mark.slow
PADDED = {"batching": "padded", "tokens_per_micro_batch": 24}
#: A model in which nothing of one datum reaches another, not even NaN.
APART = Setup(settings=PADDED)


def forward(ranks: Ranks, setup: Setup, calls: Sequence[Call]) -> list[Result]:
    """The calls' results without gradients; a warning is an error unless it is expected."""
    engine, results = engine_of(ranks, setup), []
    for call in calls:
        before = torch.get_rng_state()
        output = engine.forward(call.data, loss_of(call.loss), call.pooling)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(Result(output.metrics, outputs_by_index(output.loss_fn_outputs), {}))
    return results


@pytest.mark.parametrize("batching", [pytest.param("packed", marks=SLOW), "padded"])
def test_a_forward_on_ranks_gives_the_outputs_and_metrics_of_one_process(ranks: RankProcesses, batching: str) -> None:
    setup = Setup(value_head=True, dtype=torch.float64, settings={"tokens_per_micro_batch": 24, "batching": batching})
    names = ("cross_entropy", "dpo", "kto", "info_nce", "value_mse", "entropy_bonus")
    calls = [*(call_of(name) for name in names), call_of("grpo", "cross_entropy")]
    calls.append(replace(calls[0], data=calls[0].data[:1]))
    several = ranks.run(forward, setup, calls)
    for k, alone in enumerate(forward(ALONE, setup, calls)):
        one = differences([own[k] for own in several], alone)
        assert max(one.loss, one.metrics, one.outputs) <= 1e-12, (names[k : k + 1], one)


def likeliest(ranks: Ranks, setup: Setup, datums: Sequence[Datum], k: int) -> list[TopLogprobs]:
    return engine_of(ranks, setup).top_logprobs(datums, k)


@pytest.mark.parametrize("count", [pytest.param(1, marks=SLOW), 12])
def test_likeliest_tokens_of_each_datum_come_from_one_rank(ranks: RankProcesses, count: int) -> None:
    datums, setup = call_of("cross_entropy").data[:count], Setup(lora={"rank": 4, "seed": 0}, settings=PADDED)
    alone, several = likeliest(ALONE, setup, datums, 5), ranks.run(likeliest, setup, datums, 5)
    for i, expected in enumerate(alone):
        (own,) = [rank[i] for rank in several if len(rank[i].tokens)]
        np.testing.assert_array_equal(own.tokens, expected.tokens)
        np.testing.assert_allclose(own.logprobs, expected.logprobs, rtol=1e-6)


@pytest.mark.slow
def test_likeliest_tokens_of_sequences_that_are_read_one_at_a_time(ranks: RankProcesses) -> None:
    datums, setup = call_of("cross_entropy").data[:5], Setup(settings={"batching": "single"})
    alone, several = likeliest(ALONE, setup, datums, 5), ranks.run(likeliest, setup, datums, 5)
    for i, expected in enumerate(alone):
        (own,) = [rank[i] for rank in several if len(rank[i].tokens)]
        np.testing.assert_array_equal(own.tokens, expected.tokens)


def test_likeliest_tokens_of_a_datum_without_weight_keep_no_rank_waiting(ranks: RankProcesses) -> None:
    datums = [*call_of("cross_entropy").data[:2]]
    datums[0] = Datum(
        datums[0].model_input, {**datums[0].loss_fn_inputs, "weights": [0.0] * datums[0].model_input.length}
    )
    for own in ranks.run(likeliest, APART, datums, 3):
        assert all(np.isneginf(one.logprobs).all() for one in own[:1])


def poison(model: LoadedModel, ranks: Ranks) -> None:
    """Let the model give NaN wherever it reads token 77."""

    def poisoned(module: Any, args: Any, output: Tensor) -> Tensor:
        return output.masked_fill((args[0] == 77).unsqueeze(-1), float("nan"))

    model.module.get_input_embeddings().register_forward_hook(poisoned)  # type: ignore[operator]


def poisoned_at(call: Call, index: int) -> Call:
    """The call with token 77 in one datum and in no other."""
    data = [
        Datum(ModelInput.from_ints([77 if i == index else 1] * datum.model_input.length), datum.loss_fn_inputs)
        for i, datum in enumerate(call.data)
    ]
    return replace(call, data=data)


def state_of(engine: Engine) -> tuple[list[bytes], bytes]:
    gradients = [b"" if p.grad is None else whole_bytes(p.grad) for p in engine.model.trainable().values()]
    return gradients, torch.get_rng_state().numpy().tobytes()


def whole_bytes(tensor: Any) -> bytes:
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach().numpy().tobytes()


def failed_between(ranks: Ranks, setup: Setup, call: Call, loss: Any) -> tuple[str, str, bool, Numbers]:
    """The error of a call that fails on one rank, whether it changed anything, and the gradient of the calls around it."""
    engine, good = engine_of(ranks, setup), poisoned_at(call_of("cross_entropy"), -1)
    engine.forward_backward(good.data, loss_of(good.loss))
    before, caught = state_of(engine), ("", "")
    try:
        engine.forward_backward(call.data, loss)
    except Exception as error:
        caught = type(error).__name__, str(error)
    is_same = state_of(engine) == before
    engine.forward_backward(good.data, loss_of(good.loss))
    return *caught, is_same, taken_gradients(engine.model)


def picky(logprobs: Tensor, seqs: Any) -> Tensor:
    """Fails where one datum alone is longer than eight tokens; two of the twelve are."""
    if 9 in [len(one) for one in seqs.split(logprobs)]:
        raise ValueError("a mistake in the user's own function")
    return -logprobs


def registered(function: Any) -> LossLike:
    register_loss(function.__name__, per="token", reduction="sum", source="a test")(function)
    try:
        return get_loss(function.__name__)
    finally:
        unregister_loss(function.__name__)


def picky_between(ranks: Ranks, setup: Setup, call: Call) -> tuple[str, str, bool, Numbers]:
    return failed_between(ranks, setup, call, registered(picky))


def poisoned_between(ranks: Ranks, setup: Setup, call: Call) -> tuple[str, str, bool, Numbers]:
    return failed_between(ranks, setup, call, loss_of(call.loss))


def whole(call: Call) -> Call:
    """The call with every position in the loss."""
    data = [
        Datum(one.model_input, {**one.loss_fn_inputs, "weights": np.ones(one.model_input.length, np.float32)})
        for one in call.data
    ]
    return replace(call, data=data)


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        pytest.param("cross_entropy", {"rank": 4, "seed": 0}, id="tokens, LoRA"),
        pytest.param("kto", None, id="a batch, all weights"),
        pytest.param("dpo", None, id="pairs, all weights", marks=SLOW),
        pytest.param("kto", {"rank": 4, "seed": 0}, id="a batch, LoRA", marks=SLOW),
    ],
)
def test_nan_on_one_rank_is_raised_by_all_with_the_datum_and_changes_nothing(
    ranks: RankProcesses, name: str, lora: dict[str, Any] | None
) -> None:
    setup = replace(APART, lora=lora, change=poison, dtype=torch.float64)
    call = poisoned_at(call_of(name), 7)
    alone = poisoned_between(ALONE, setup, call)
    for kind, text, is_same, gradients in ranks.run(poisoned_between, setup, call):
        assert (kind, text) == alone[:2]
        assert kind == "NonFiniteLossInput"
        assert "datum 7 " in text
        assert is_same
        assert relative(gradients, alone[3]) <= 1e-12


def test_a_function_that_fails_on_one_rank_is_raised_by_all_and_changes_nothing(ranks: RankProcesses) -> None:
    call = whole(call_of("cross_entropy"))
    assert sum(datum.model_input.length == 9 for datum in call.data) == 1
    for kind, text, is_same, _ in ranks.run(picky_between, APART, call):
        assert (kind, text, is_same) == ("ValueError", "a mistake in the user's own function", True)


def infinite(logprobs: Tensor, seqs: Any) -> Tensor:
    """Infinite, with a finite gradient, for the one datum of nine tokens."""
    return torch.where(seqs.broadcast(seqs.lengths) == 9, torch.inf, 0.0) - logprobs


def infinite_between(ranks: Ranks, setup: Setup, call: Call) -> tuple[str, str, bool, Numbers]:
    return failed_between(ranks, setup, call, registered(infinite))


def test_a_loss_that_is_infinite_on_one_rank_is_refused_by_all_and_changes_nothing(ranks: RankProcesses) -> None:
    for kind, text, is_same, _ in ranks.run(infinite_between, APART, whole(call_of("cross_entropy"))):
        assert (kind, is_same) == ("NonFiniteLossError", True)
        assert "the loss is inf" in text


def counted(ranks: Ranks, setup: Setup, calls: Sequence[Call], full: int) -> list[tuple[int, int, float]]:
    """How many forwards and backwards each call takes, and its `forward_passes`; on rank `full` no memory is free."""
    engine, counts, sysconf = engine_of(ranks, setup), [0, 0], os.sysconf

    def passed(module: Any, args: Any, output: Any) -> None:
        counts[0] += 1
        if (hidden := output.last_hidden_state).requires_grad:
            hidden.register_hook(went_back)

    def went_back(gradient: Tensor) -> None:
        counts[1] += 1

    engine.model.backbone.register_forward_hook(passed)
    results = []
    os.sysconf = lambda name: 0 if ranks.rank == full else sysconf(name)
    try:
        for call in calls:
            counts[:] = 0, 0
            output = engine.forward_backward(call.data, loss_of(call.loss))
            results.append((*counts, output.metrics["forward_passes"]))
    finally:
        os.sysconf = sysconf
    return results


def test_every_rank_makes_as_many_forwards_and_backwards_and_all_agree_where_one_lacks_memory(
    ranks: RankProcesses,
) -> None:
    unequal = call_of("cross_entropy", count=5)
    calls = [unequal, replace(unequal, data=unequal.data[:1]), call_of("kto"), call_of("info_nce")]
    for full in (-1, 1):
        own, other = ranks.run(counted, replace(APART, settings=PADDED | {"tokens_per_micro_batch": 9}), calls, full)
        assert own == other
        passes = 1 if full == -1 else 2
        assert [each[2] for each in own] == [1, 1, passes, passes]
        # the first micro-batch of those that are computed again was measured
        assert all(forwards == backwards * each for forwards, backwards, each in own)


def missing(ranks: Ranks, data: Sequence[Datum]) -> None:
    engine_of(ranks, APART).forward_backward(data, get_loss("ppo"))


def test_data_that_a_loss_cannot_use_is_refused_by_every_rank_before_a_forward(ranks: RankProcesses) -> None:
    with pytest.raises(MissingInput, match="datum 0 of 12"):
        ranks.run(missing, call_of("cross_entropy").data)


def drop_layers(ranks: Ranks) -> None:
    model = load_model("tiny", device="cpu").train_all_weights()
    model.config.layerdrop = 0.1
    Engine(shard_model(model, ranks), EngineSettings(dropout=True))


def test_a_model_that_leaves_layers_out_at_random_is_refused_on_ranks(ranks: RankProcesses) -> None:
    drop_layers(ALONE)
    with pytest.raises(ModelError, match=r"layers out at random in training \(layerdrop=0.1\)"):
        ranks.run(drop_layers)


class Learned(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, data: Any, logprobs_list: Any) -> Any:
        return self.scale * sum(one.sum() for one in logprobs_list), {}


def learned(ranks: Ranks, data: Sequence[Datum]) -> None:
    engine_of(ranks, APART).forward_backward(data, Loss(spec_of_function(Learned(), output="logprobs"), {}))


def test_a_loss_with_parameters_is_not_computed_on_each_rank(ranks: RankProcesses) -> None:
    with pytest.raises(LossContractError, match="each of 2 ranks would train one of its own"):
        ranks.run(learned, call_of("cross_entropy").data)


def warned_forward(ranks: Ranks, setup: Setup, call: Call) -> tuple[list[str], dict[str, float]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = engine_of(ranks, setup).forward(call.data, loss_of(call.loss))
    return [str(one.message) for one in caught if "datum" in str(one.message)], output.metrics


@pytest.mark.parametrize("name", ["cross_entropy", pytest.param("kto", marks=SLOW)])
def test_a_forward_that_gives_nan_on_one_rank_warns_on_all(ranks: RankProcesses, name: str) -> None:
    setup, call = replace(APART, change=poison), poisoned_at(call_of(name), 7)
    texts, metrics = warned_forward(ALONE, setup, call)
    assert len(texts) == 1
    assert "datum 7 " in texts[0]
    for own, ours in ranks.run(warned_forward, setup, call):
        assert own == texts
        np.testing.assert_equal(np.isnan([*ours.values()]), np.isnan([*metrics.values()]))
        assert ours.keys() == metrics.keys()


def exhausted(model: LoadedModel, ranks: Ranks) -> None:
    """Every forward runs out of memory."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("simulated")

    model.backbone.register_forward_pre_hook(fail)


def out_of_memory(ranks: Ranks, call: Call) -> str:
    engine = engine_of(ranks, replace(APART, change=exhausted))
    try:
        engine.forward_backward(call.data, loss_of(call.loss))
    except torch.OutOfMemoryError as error:
        return str(error)
    return ""


def test_out_of_memory_on_ranks_says_what_to_do_and_is_not_tried_again(ranks: RankProcesses) -> None:
    for rank, text in enumerate(ranks.run(out_of_memory, call_of("cross_entropy"))):
        assert f"out of memory on rank {rank} of 2 with tokens_per_micro_batch=24: make it smaller" in text


def dropping(ranks: Ranks, base: str, lora: Any, call: Call, repeats: int) -> tuple[list[float], bytes, bool]:
    """The losses of some calls with dropout, the random state after them, and whether it differs from before."""
    settings = {**PADDED, "dropout": lora is None}
    engine = engine_of(ranks, Setup(base=base, lora=lora, settings=settings))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    values = [engine.forward_backward(call.data, loss_of(call.loss)).metrics["loss:sum"] for _ in range(repeats)]
    after = torch.get_rng_state()
    return values, after.numpy().tobytes(), not torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "lora"),
    [
        pytest.param("kto", None, id="the model's, a batch"),
        pytest.param("cross_entropy", None, id="the model's, tokens", marks=SLOW),
        pytest.param("cross_entropy", {"rank": 4, "seed": 0, "dropout": 0.5}, id="adapters', tokens", marks=SLOW),
    ],
)
def test_ranks_drop_by_numbers_of_their_own_and_end_in_one_random_state(
    ranks: RankProcesses, name: str, lora: Any, model_with_dropout: str
) -> None:
    call = call_of(name)
    call = replace(call, data=[*call.data[:2]] * 2)
    first, again = (ranks.run(dropping, model_with_dropout, lora, call, 2) for _ in range(2))
    assert first == again, "the same state drops the same"
    (values, state, has_moved), (_, other, _) = first
    assert values[0] != values[1]
    assert state == other
    assert has_moved


def drops_of_rank(ranks: Ranks, base: str) -> Numbers:
    """The logprobs of two equal datums, one on each rank, with dropout."""
    engine = engine_of(ranks, Setup(base=base, settings={**PADDED, "dropout": True}))
    datum = call_of("cross_entropy").data[5]
    torch.manual_seed(3)
    output = engine.forward_backward([datum, datum], get_loss("cross_entropy"))
    ((_, numbers),) = outputs_by_index(output.loss_fn_outputs).items()
    return numbers


def test_two_ranks_do_not_drop_the_same(ranks: RankProcesses, model_with_dropout: str) -> None:
    one, other = ranks.run(drops_of_rank, model_with_dropout)
    assert not np.allclose(one["logprobs"], other["logprobs"])


def test_bfloat16_products_on_ranks_are_those_of_one_process(ranks: RankProcesses) -> None:
    setup = replace(APART, dtype=torch.bfloat16)
    calls = [call_of(name, cuts=4) for name in ("cross_entropy", "info_nce")]
    several = ranks.run(run_calls, setup, calls)
    for k, alone in enumerate(run_calls(ALONE, setup, calls)):
        one = differences([own[k] for own in several], alone)
        assert max(one.loss, one.metrics, one.outputs) <= 1e-6, one
        assert one.gradients <= 1e-5, one
