"""A function that is computed on the client's side, over the outputs of all ranks: once, with one forward and one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lossbook import Datum, ModelInput, adaptive_layer, get_loss
from lossbook.datums.errors import LossbookError, ModelError, NonFiniteLossError, NonFiniteLossInput
from lossbook.losses.loss.loss import Loss, LossLike
from lossbook.losses.registry import spec_of_function
from lossbook.trainer.engine.elsewhere import KeptOutputs, LossElsewhere, Reads
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.ranks import ALONE, Ranks

from .calls import Call, Numbers, Result, Setup, call_of, differences, engine_of, outputs_by_index, taken_gradients
from .processes import RankProcesses

#: The engine of this process, between the calls of one test.
HELD: dict[str, Any] = {}
SMALL = {"tokens_per_micro_batch": 24}


def variance(data: Any, logprobs_list: Any) -> Any:
    """It couples every token of the batch with every other."""
    values = torch.cat([one.reshape(-1) for one in logprobs_list])
    return values.var() + values.mean(), {"tokens": float(len(values))}


def spread(data: Any, embeddings: Any) -> Any:
    return -torch.pdist(torch.stack(list(embeddings))).mean(), {}


def fails(data: Any, logprobs_list: Any) -> Any:
    raise RuntimeError("a mistake in the user's own function")


def is_nan(data: Any, logprobs_list: Any) -> Any:
    return sum(one.sum() for one in logprobs_list) * float("nan"), {}


class Learned(torch.nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, data: Any, logprobs_list: Any) -> Any:
        return self.scale * variance(data, logprobs_list)[0], {}


def own_loss(function: Callable[..., Any], output: str = "logprobs") -> Loss:
    return Loss(spec_of_function(function, output=output), {})


def begin(ranks: Ranks, setup: Setup) -> None:
    """Make the engine of this rank, which counts its forwards."""
    HELD["engine"] = engine = engine_of(ranks, setup)
    HELD["forwards"] = 0

    def count(*_: Any) -> None:
        HELD["forwards"] += torch.is_grad_enabled()

    engine.model.backbone.register_forward_pre_hook(count)


def engine_call(ranks: Ranks, name: str, *args: Any, **options: Any) -> Any:
    return getattr(HELD["engine"], name)(*args, **options)


def forward_only(ranks: Ranks, datums: Sequence[Datum], reads: Reads, pooling: Any) -> KeptOutputs:
    return HELD["engine"].forward_kept(datums, reads.everywhere(), pooling, keep=False)


def taken(ranks: Ranks) -> tuple[Numbers, int, bytes]:
    """The whole gradients, which are cleared; how many forwards ran; and the random state."""
    return taken_gradients(HELD["engine"].model), HELD["forwards"], torch.get_rng_state().numpy().tobytes()


def evaluated(ranks: RankProcesses, call: Call, loss: LossLike, size: int) -> tuple[list[Result], int]:
    """A call whose loss is computed here; its results by rank, and the largest number of forwards of a rank."""
    here = LossElsewhere(call.data, loss)
    parts = ranks.run(engine_call, "forward_kept", call.data, here.reads, call.pooling, size=size)
    gradients = here.differentiate(parts)
    ranks.run(engine_call, "backward_kept", gradients, size=size)
    output, results = here.finish(), []
    outputs, there = outputs_by_index(output.loss_fn_outputs), ranks.run(taken, size=size)
    for (whole, *_), part in zip(there, parts, strict=True):
        results.append(Result(output.metrics, {i: outputs[i] for i in part.order.tolist()}, whole))
    return results, max(forwards for _, forwards, _ in there)


def in_one_process(setup: Setup, call: Call, loss: LossLike) -> Result:
    engine = engine_of(ALONE, setup)
    output = engine.forward_backward(call.data, loss, call.pooling)
    return Result(output.metrics, outputs_by_index(output.loss_fn_outputs), taken_gradients(engine.model))


FAST = ("layers that are split", "a function over logprobs", "a rank without a datum")
CASES: dict[str, tuple[Setup, Call, LossLike]] = {
    "a function over logprobs": (Setup(settings=SMALL), call_of("cross_entropy"), own_loss(variance)),
    "a function over embeddings": (Setup(settings=SMALL), call_of("info_nce"), own_loss(spread, "embeddings")),
    "a registered loss": (
        Setup(lora={"rank": 4, "seed": 0}, settings=SMALL),
        call_of("dpo"),
        get_loss("dpo"),
    ),
    "a loss over the likeliest tokens": (Setup(settings=SMALL), call_of("eaft"), get_loss("eaft")),
    "a loss over layers": (
        Setup(base="tiny-encoder", settings=SMALL),
        call_of("info_nce"),
        adaptive_layer("info_nce", layers=(1, 0)),
    ),
    "a mixture with a function": (
        Setup(settings=SMALL),
        call_of("cross_entropy"),
        0.5 * get_loss("cross_entropy") + own_loss(variance),
    ),
    "an encoder": (Setup(base="tiny-encoder", settings=SMALL), call_of("info_nce"), own_loss(spread, "embeddings")),
    "recomputed": (Setup(settings=SMALL | {"kept_graph_tokens": 1}), call_of("cross_entropy"), own_loss(variance)),
    "layers that are split": (Setup(width=2, settings=SMALL), call_of("cross_entropy"), own_loss(variance)),
    "a rank without a datum": (
        Setup(settings=SMALL),
        replace(call_of("cross_entropy"), data=call_of("cross_entropy").data[-1:]),
        own_loss(variance),
    ),
}


@pytest.mark.parametrize(
    ("setup", "call", "loss"),
    [pytest.param(*case, id=name, marks=[] if name in FAST else pytest.mark.slow) for name, case in CASES.items()],
)
def test_a_function_on_the_clients_side_gives_the_numbers_of_one_process(
    ranks: RankProcesses, setup: Setup, call: Call, loss: LossLike
) -> None:
    setup = replace(setup, dtype=torch.float64)
    ranks.run(begin, setup, size=2)
    several, forwards = evaluated(ranks, call, loss, 2)
    one = differences(several, in_one_process(setup, call, loss))
    assert max(one.loss, one.metrics, one.outputs, one.gradients) <= 1e-12, one
    micro_batches = several[0].metrics["micro_batches"]
    is_recomputed = several[0].metrics["forward_passes"] == 2
    assert is_recomputed == ("kept_graph_tokens" in setup.settings)
    assert forwards == -(-micro_batches // (2 // setup.width)), "each micro-batch has one forward with a graph"


def test_parameters_of_a_loss_get_their_gradient_where_the_loss_is(ranks: RankProcesses) -> None:
    setup, call = Setup(dtype=torch.float64, settings=SMALL), call_of("cross_entropy")
    expected, module = Learned(), Learned()
    alone = in_one_process(setup, call, own_loss(expected))
    ranks.run(begin, setup)
    several, _ = evaluated(ranks, call, own_loss(module), 2)
    assert differences(several, alone).gradients <= 1e-12
    assert expected.scale.grad is not None
    torch.testing.assert_close(module.scale.grad, expected.scale.grad)


@pytest.mark.parametrize(
    ("function", "error"),
    [(fails, RuntimeError), pytest.param(is_nan, NonFiniteLossError, marks=pytest.mark.slow)],
    ids=["raises", "is NaN"],
)
def test_a_function_that_fails_leaves_all_ranks_as_they_were(
    ranks: RankProcesses, function: Callable[..., Any], error: type[Exception], model_with_dropout: str
) -> None:
    setup, call = Setup(base=model_with_dropout, settings=SMALL | {"dropout": True}), call_of("cross_entropy")
    ranks.run(begin, setup)
    before = [state for _, _, state in ranks.run(taken)]
    here = LossElsewhere(call.data, own_loss(function))
    parts = ranks.run(engine_call, "forward_kept", call.data, here.reads)
    with pytest.raises(error):
        here.differentiate(parts)
    ranks.run(engine_call, "drop_kept")
    for (gradients, _, state), earlier in zip(ranks.run(taken), before, strict=True):
        assert not any(one.any() for one in gradients.values())
        assert state == earlier
    again, _ = evaluated(ranks, call, own_loss(variance), 2)
    assert any(one.any() for one in again[0].gradients.values())


def test_graphs_that_were_dropped_cannot_be_gone_back_through(ranks: RankProcesses) -> None:
    ranks.run(begin, Setup(settings=SMALL))
    with pytest.raises(ModelError, match="needs the graphs of a forward_kept"):
        ranks.run(engine_call, "backward_kept", {})
    call = call_of("cross_entropy")
    ranks.run(engine_call, "forward_kept", call.data, Reads(("logprobs",)))
    with pytest.raises(LossbookError, match=r"the gradient of logprobs has 3 rows, but there are \d+ outputs"):
        ranks.run(engine_call, "backward_kept", {"logprobs": np.zeros(3)})
    assert not any(one.any() for gradients, *_ in ranks.run(taken) for one in gradients.values())


def test_a_forward_for_a_function_gives_every_position_and_changes_nothing(
    ranks: RankProcesses, model_with_dropout: str
) -> None:
    setup, call = Setup(base=model_with_dropout, settings=SMALL | {"dropout": True}), call_of("cross_entropy")
    ranks.run(begin, setup)
    before = ranks.run(taken)
    here = LossElsewhere(call.data, own_loss(variance))
    ours = here.valued(ranks.run(forward_only, call.data, here.reads, call.pooling))
    expected = engine_of(ALONE, setup).forward(call.data, own_loss(variance))
    assert ours.metrics == pytest.approx(expected.metrics, rel=1e-6)
    for own, other in zip(ours.loss_fn_outputs, expected.loss_fn_outputs, strict=True):
        np.testing.assert_allclose(own["logprobs"].to_numpy(), other["logprobs"].to_numpy(), rtol=1e-6, atol=1e-6)
    assert [state for *_, state in ranks.run(taken)] == [state for *_, state in before]


def poison(model: LoadedModel, ranks: Ranks) -> None:
    """NaN wherever the model reads token 77."""

    def poisoned(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == 77).unsqueeze(-1), float("nan"))

    model.module.get_input_embeddings().register_forward_hook(poisoned)  # type: ignore[operator]


def with_tokens(datum: Datum, tokens: list[int]) -> Datum:
    return Datum(ModelInput.from_ints(tokens), datum.loss_fn_inputs)


def test_nan_of_the_model_is_named_with_its_datum_by_a_function_elsewhere(ranks: RankProcesses) -> None:
    data = [with_tokens(datum, [1] * datum.model_input.length) for datum in call_of("cross_entropy").data]
    data[7] = with_tokens(data[7], [77] * data[7].model_input.length)
    ranks.run(begin, Setup(settings=SMALL | {"batching": "padded"}, change=poison))
    here = LossElsewhere(data, own_loss(variance))
    parts = ranks.run(engine_call, "forward_kept", data, here.reads)
    with pytest.raises(NonFiniteLossInput, match="of datum 7 "):
        here.differentiate(parts)
    ranks.run(engine_call, "drop_kept")
