"""The checks of the conformance kit for models. Each raises `DoesNotApply`, or returns the largest difference and its unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...datums.builders.tokens import datum_from_tokens_weights
from ...datums.types import Datum, SamplingParams
from ...losses.registry import get_loss
from ..engine.engine import Engine
from ..model.model import LoadedModel
from ..packing.micro_batches import SHORTEST_PREFIX
from ..packing.probes import crossing_sequences, probe_sequences
from ..sampling.generate import generate_batch

#: Differences up to this are rounding, in nats (logprobs) or in units of the largest gradient.
NATS, NARROW_NATS = 1e-3, 0.3
Check = Callable[[Engine], float]


class DoesNotApply(Exception):
    """A check has nothing to check for this model; the text says why."""


def tolerance(model: LoadedModel) -> float:
    """What counts as rounding: more for products in bfloat16 or float16."""
    return NATS if model.product_dtype in (torch.float32, torch.float64) else NARROW_NATS


def own_logits(engine: Engine) -> float:
    """Logprobs are those of the model's own logits."""
    datums = _datums(engine)
    output = engine.forward(datums, get_loss("cross_entropy"))
    return max(
        _largest(fields["logprobs"].to_torch(), _own_logprobs(engine.model, datum).cpu())
        for fields, datum in zip(output.loss_fn_outputs, datums, strict=True)
    )


def own_gradient(engine: Engine) -> float:
    """The gradient of cross-entropy is autograd's through the model's own logits, in units of the largest."""
    parameters = engine.model.trainable()
    before = {name: p.grad for name, p in parameters.items()}
    datums = _datums(engine)
    try:
        _clear(parameters.values())
        engine.forward_backward(datums, get_loss("cross_entropy"))
        ours = {name: p.grad for name, p in parameters.items()}
        _clear(parameters.values())
        with torch.enable_grad():
            for datum in datums:
                weights = datum.loss_fn_inputs["weights"].to_torch().to(engine.model.device)
                (-(_own_logprobs(engine.model, datum) * weights).sum()).backward()
        theirs = {name: p.grad for name, p in parameters.items()}
    finally:
        for name, parameter in parameters.items():
            parameter.grad = before[name]
    scale = max((float(g.abs().max()) for g in theirs.values() if g is not None), default=0.0)
    return max(_of_two(ours[name], theirs[name]) for name in parameters) / max(scale, 1e-30)


def company(engine: Engine) -> float:
    """A datum's logprobs do not depend on its company: order, padding, packing, prefixes that others share."""
    datums, loss = _datums(engine), get_loss("cross_entropy")
    alone = [engine.forward([datum], loss).loss_fn_outputs[0]["logprobs"].to_torch() for datum in datums]
    largest = 0.0
    for order in (list(range(len(datums))), list(reversed(range(len(datums))))):
        together = engine.forward([datums[i] for i in order], loss).loss_fn_outputs
        largest = max(
            largest, *(_largest(f["logprobs"].to_torch(), alone[i]) for f, i in zip(together, order, strict=True))
        )
    return largest


def cutting(engine: Engine) -> float:
    """Weights of 0 at the end, where tokens need not be computed, change no other logprob."""
    largest = 0.0
    for datum in _datums(engine):
        tokens = datum.model_input.length
        read = max(tokens // 2, 1)
        masked = replace_weights(datum, [1.0] * read + [0.0] * (tokens - read))
        whole = engine.forward([datum], get_loss("cross_entropy")).loss_fn_outputs[0]["logprobs"].to_torch()
        cut = _with_gradients_restored(engine, masked)
        largest = max(largest, _largest(cut[:read], whole[:read]))
    return largest


def sampling(engine: Engine) -> float:
    """One sample's logprobs are those of a forward over the tokens before each."""
    return _sampled(engine, 1)


def group_sampling(engine: Engine) -> float:
    """The same for several samples of prompts that are decoded together."""
    return _sampled(engine, 3)


def length_switch(engine: Engine) -> float:
    """The same across the length at which the model's rotation switches."""
    sequences = crossing_sequences(engine.model)
    if not sequences:
        raise DoesNotApply("no rotation that switches within 512 tokens")
    return _sampled(engine, 2, [sequences[1].tolist()], tokens=8)


#: The checks of decoders by the name that reports show.
CHECKS: dict[str, Check] = {
    "logprobs are those of the model's own logits": own_logits,
    "the gradient is autograd's through those logits": own_gradient,
    "a datum's numbers do not depend on its company": company,
    "leaving out what is not read changes nothing": cutting,
    "sampled logprobs are those of a forward": sampling,
    "so are those of several samples of several prompts": group_sampling,
    "so are those across a switch of rotation": length_switch,
}


def replace_weights(datum: Datum, weights: list[float]) -> Datum:
    """The same datum with other weights."""
    return replace(datum, loss_fn_inputs={**datum.loss_fn_inputs, "weights": weights})


def _datums(engine: Engine) -> list[Datum]:
    model = engine.model
    shared = (np.arange(SHORTEST_PREFIX + 2) * 3 + 1) % model.vocab_size
    sequences = [*probe_sequences(model), np.concatenate([shared, shared[:3]]), np.concatenate([shared, shared[4:9]])]
    longest = model.max_length or 1 << 62
    lists = [sequence[:longest].tolist() for sequence in [*sequences, *crossing_sequences(model)]]
    return [datum_from_tokens_weights(tokens, [1.0] * len(tokens)) for tokens in lists if len(tokens) > 1]


def _own_logprobs(model: LoadedModel, datum: Datum) -> Tensor:
    """[length] nats: from the module's own logits for the datum's tokens alone."""
    tokens = torch.tensor([datum.model_input.to_ints()], device=model.device)
    targets = datum.loss_fn_inputs["target_tokens"].to_torch().long().to(model.device)
    with model.precision():
        logits = model.module(input_ids=tokens, use_cache=False).logits[0]
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _with_gradients_restored(engine: Engine, datum: Datum) -> Tensor:
    parameters = list(engine.model.trainable().values())
    before = [parameter.grad for parameter in parameters]
    _clear(parameters)
    try:
        return engine.forward_backward([datum], get_loss("cross_entropy")).loss_fn_outputs[0]["logprobs"].to_torch()
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


@torch.no_grad()
def _sampled(engine: Engine, samples: int, prompts: list[list[int]] | None = None, tokens: int = 4) -> float:
    model = engine.model
    prompts = prompts or [sequence[:12].tolist() for sequence in probe_sequences(model)]
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, stop=[])
    largest = 0.0
    for prompt, group in zip(prompts, generate_batch(model, prompts, num_samples=samples, params=params), strict=True):
        for sample in group:
            for i, logprob in enumerate(sample.logprobs):
                row = [*prompt, *sample.tokens[: i + 1]]
                own = _own_logprobs(model, datum_from_tokens_weights(row, [1.0] * len(row)))[-1]
                largest = max(largest, abs(float(own) - logprob))
    return largest


def _clear(parameters: object) -> None:
    for parameter in parameters:  # type: ignore[attr-defined]
        parameter.grad = None


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.detach().double()).abs().max())


def _of_two(ours: Tensor | None, theirs: Tensor | None) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float((ours if theirs is None else theirs).abs().max())  # type: ignore[union-attr]
    return _largest(ours, theirs)
