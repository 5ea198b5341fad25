"""Calls of the engine on ranks, and what came of them, for comparison with one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lossbook import Datum, ModelInput, adaptive_layer
from lossbook.losses.batch.groups import units_of
from lossbook.losses.loss.loss import Loss, LossLike, Mixture
from lossbook.trainer.engine.checks import Pooling
from lossbook.trainer.engine.engine import Engine
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.tiny import HIDDEN
from lossbook.trainer.model.value_head import add_value_head
from lossbook.trainer.packing.micro_batches import plan_micro_batches
from lossbook.trainer.ranks import Ranks
from lossbook.trainer.sharding.shard import shard_model
from tests.losses.batches import batch_for
from tests.losses.cases import with_needed

VOCABULARY = 260
#: Metrics that say how a call was cut, and so depend on how many ranks there are.
OF_THE_CUT = ("micro_batches", "forward_passes")

Numbers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setup:
    """A model and how it runs. width: ranks that share each matrix. change: done to it once it is made, such as a hook; at the top of a module of tests."""

    base: str = "tiny"
    lora: dict[str, Any] | None = None
    value_head: bool = False
    dtype: torch.dtype = torch.float32
    settings: dict[str, Any] = field(default_factory=dict)
    width: int = 1
    masked_lm_head: bool = False
    change: Callable[[LoadedModel, Ranks], None] | None = None


@dataclass(frozen=True)
class Call:
    """One call: its loss as (factor, id, settings) for each part, and its datums.

    cuts: it has the smallest budget with which it is cut into so many micro-batches at most, which is then the same plan for
    as many ranks and for each divisor of it; None for the budget of its model.
    """

    loss: Sequence[tuple[float, str, Mapping[str, Any]]]
    data: Sequence[Datum]
    pooling: Pooling = "mean"
    cuts: int | None = None


@dataclass
class Result:
    """What one rank has after a call: metrics, outputs of its own datums by index, and whole gradients by parameter."""

    metrics: dict[str, float]
    outputs: dict[int, Numbers]
    gradients: Numbers


def loss_of(parts: Sequence[tuple[float, str, Mapping[str, Any]]]) -> LossLike:
    """The loss of a call, or the mixture."""
    losses = [(factor, _made(name, config)) for factor, name, config in parts]
    return losses[0][1] if len(losses) == 1 else Mixture(losses)


def _made(name: str, config: Mapping[str, Any]) -> Loss:
    """A registered loss; "layers of info_nce" is that loss over two layers."""
    base = with_needed(name.removeprefix("layers of "), **config)
    return adaptive_layer(base, layers=(1, 0), kl_temperature=2.0) if name.startswith("layers of ") else base


def call_of(
    *names: str, count: int = 12, length: int = 9, seed: int = 0, cuts: int | None = None, **config: Any
) -> Call:
    """A call of a loss, or of a mixture, over data that it can read: random tokens, weights by fractions, some of them 0."""
    parts = [((-0.5) ** i, name, config) for i, name in enumerate(names)]
    batch, rng = batch_for(loss_of(parts), count, length=length, seed=seed), np.random.default_rng(seed)  # type: ignore[arg-type]
    data: list[Datum] = []
    for datum in batch.data:
        inputs, tokens = dict(datum.loss_fn_inputs), rng.integers(0, VOCABULARY, datum.model_input.length)
        inputs["target_tokens"] = rng.integers(0, VOCABULARY, inputs["target_tokens"].shape)
        weights = rng.uniform(0.25, 2.0, inputs["weights"].shape).astype(np.float32)
        weights[: len(weights) // 3] = 0
        if "teacher_embedding" in inputs:  # as wide as the model's own
            inputs["teacher_embedding"] = rng.normal(size=HIDDEN).astype(np.float32)
        data.append(Datum(ModelInput.from_ints(tokens), {**inputs, "weights": weights}))
    return Call(parts, data, cuts=cuts)


def engine_of(ranks: Ranks, setup: Setup) -> Engine:
    """The model on these ranks, and its engine."""
    model = load_model(setup.base, device="cpu", dtype=setup.dtype, masked_lm_head=setup.masked_lm_head)
    model = model.train_all_weights() if setup.lora is None else add_lora(model, **setup.lora)
    generator = torch.Generator().manual_seed(0)
    if setup.value_head:
        head = add_value_head(model).value_head
        assert head is not None
        torch.nn.init.normal_(head.weight, std=0.3, generator=generator)
    with torch.no_grad():  # adapters begin at 0, where half of their gradients are 0 too
        for name, parameter in model.trainable().items() if setup.lora is not None else ():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    engine = Engine(shard_model(model, ranks, tensor_parallel=setup.width), EngineSettings(**setup.settings))
    if setup.change is not None:
        setup.change(model, ranks)
    return engine


def run_calls(ranks: Ranks, setup: Setup, calls: Sequence[Call]) -> list[Result]:
    """The forward and backward of each call, from gradients of zero."""
    engine = engine_of(ranks, setup)
    results = []
    for call in calls:
        if call.cuts is not None:
            budget = budget_of(call, call.cuts, padded=engine.settings.batching == "padded")
            engine.settings = replace(engine.settings, tokens_per_micro_batch=budget)
        output = engine.forward_backward(call.data, loss_of(call.loss), call.pooling)
        results.append(Result(output.metrics, outputs_by_index(output.loss_fn_outputs), taken_gradients(engine.model)))
    return results


def budget_of(call: Call, cuts: int, *, padded: bool) -> int:
    """The smallest budget of tokens with which a call is cut into at most so many micro-batches."""
    lengths, loss = [datum.model_input.length for datum in call.data], loss_of(call.loss)
    kept: Any = {"pairs": loss.couples == "pair", "padded": padded}
    kept["units"] = units_of(call.data, [part.spec for _, part in loss.parts])
    budgets = range(1, len(lengths) * max(lengths) + 1)
    return next(b for b in budgets if len(plan_micro_batches(lengths, tokens=b, **kept)) <= cuts)


def outputs_by_index(outputs: Sequence[Mapping[str, Any]]) -> dict[int, Numbers]:
    return {i: {name: one.to_numpy() for name, one in own.items()} for i, own in enumerate(outputs) if own}


def taken_gradients(model: LoadedModel) -> Numbers:
    """The whole gradients by parameter, zeros where there is none; they are cleared."""
    gradients: Numbers = {}
    for name, parameter in model.trainable().items():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient  # type: ignore[operator]
        gradients[name] = whole.detach().numpy().copy()
        parameter.grad = None
    return gradients


@dataclass(frozen=True)
class Differences:
    """The largest differences between what ranks have and what one process has, each relative to its size or to 1.

    gradients: for each parameter, of its largest entry, or of a hundredth of the largest of all where that is more: a
    bias whose gradient nearly cancels is rounded as coarsely as what it is the sum of.
    """

    loss: float
    metrics: float
    outputs: float
    gradients: float


def differences(several: Sequence[Result], alone: Result) -> Differences:
    """Compare; every rank must have the whole call's metrics and gradients, and every datum's outputs must be on one rank."""
    held = [i for result in several for i in result.outputs]
    assert sorted(held) == sorted(alone.outputs), "each datum's outputs are on one rank"
    metrics: list[float] = []
    for result in several:
        assert result.metrics.keys() == alone.metrics.keys()
        pairs = [(result.metrics[name], value) for name, value in alone.metrics.items() if name not in OF_THE_CUT]
        metrics += [abs(own - value) / max(abs(value), 1.0) for own, value in pairs if own == own or value == value]
    outputs = [
        float((np.abs(one - alone.outputs[i][name]) / np.maximum(np.abs(alone.outputs[i][name]), 1)).max(initial=0.0))
        for result in several
        for i, own in result.outputs.items()
        for name, one in own.items()
    ]
    value = alone.metrics["loss:sum"]
    losses = [abs(result.metrics["loss:sum"] - value) / max(abs(value), 1.0) for result in several]
    gradients = [relative(result.gradients, alone.gradients) if alone.gradients else 0.0 for result in several]
    return Differences(max(losses), max(metrics), max(outputs), max(gradients))


def relative(ours: Numbers, expected: Numbers) -> float:
    """The largest difference of gradients, as `Differences` says."""
    assert ours.keys() == expected.keys()
    sizes = {name: float(np.abs(one).max()) for name, one in expected.items()}
    largest = max(sizes.values())
    assert largest > 0, "the loss moved nothing, so nothing was compared"
    return max(
        float(np.abs(ours[name] - one).max()) / max(sizes[name], 1e-2 * largest) for name, one in expected.items()
    )
