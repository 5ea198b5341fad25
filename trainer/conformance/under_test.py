"""`ModelUnderTest`: a model's own numbers, which checks compare with, and how far rounding alone takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...datums.builders.tokens import datum_from_tokens_weights
from ...datums.types import Datum
from ...losses.registry import get_loss
from ..engine.engine import Engine
from ..model.model import LoadedModel
from ..packing.micro_batches import SHORTEST_PREFIX
from ..packing.probes import crossing_sequences, probe_sequences

#: Products in float32 differ by this much at most: logprobs in nats, gradients in units of the largest.
WIDE = 1e-4
#: Narrower products differ from float32 by the model's own rounding, and two computations of the same by sqrt(2) times that
#: where they round independently; so much of it is still rounding, also where a check sees few tokens.
ROUNDINGS = 3.0
#: There the difference that a quarter of the tokens exceed counts: rounding sends some tokens of a mixture to other experts.
MOST = 0.75

Gradients = dict[str, Tensor]


class DoesNotApply(Exception):
    """A check has nothing to check for this model; the text says why."""


@dataclass(frozen=True)
class Off:
    """A measured difference and the limit that rounding allows. note: further information for the reader."""

    by: float
    at_most: float
    unit: str = "nats"
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether it is only rounding; False for NaN."""
        return self.by <= self.at_most

    def __str__(self) -> str:
        measured = f"off by {self.by:.1e} {self.unit}, at most {self.at_most:.1e}" if self.unit else ""
        return "; ".join(part for part in (measured, self.note) if part)


@dataclass
class ModelUnderTest:
    """A model in its engine, with what all checks share computed once."""

    engine: Engine

    @property
    def model(self) -> LoadedModel:
        """The model."""
        return self.engine.model

    @property
    def is_narrow(self) -> bool:
        """Whether products are narrower than float32."""
        return self.model.product_dtype not in (torch.float32, torch.float64)

    @cached_property
    def datums(self) -> list[Datum]:
        """A short datum, two that share a prefix, and one on each side of a length switch that is near."""
        sequences = [*probe_sequences(self.model, SHORTEST_PREFIX + 1), *crossing_sequences(self.model)]
        return [datum_of(sequence.tolist()) for sequence in sequences if len(sequence) > 1]

    @cached_property
    def own(self) -> list[Tensor]:
        """Of each datum, [length] nats, from the module's own logits for it alone."""
        with torch.no_grad():
            return [own_logprobs(self.model, datum) for datum in self.datums]

    @cached_property
    def own_gradients(self) -> Gradients:
        """The gradient of cross-entropy, autograd's through those logits."""
        return own_gradients(self.model, self.datums)

    @cached_property
    def rounding(self) -> float:
        """How far most own logprobs are from those in float32, in nats."""
        with in_float32(self.model), torch.no_grad():
            exact = [own_logprobs(self.model, datum) for datum in self.datums]
        return _most(torch.cat(self.own) - torch.cat(exact))

    @cached_property
    def gradient_rounding(self) -> float:
        """Norm of own gradients minus those in float32, over the latters' norm."""
        with in_float32(self.model):
            exact = own_gradients(self.model, self.datums)
        return _relative(self.own_gradients, exact)

    def forward(self, order: Sequence[int] | None = None) -> list[Tensor]:
        """Logprobs of the datums as the engine computes them, in one call, in the order of `order`."""
        chosen = [self.datums[i] for i in (range(len(self.datums)) if order is None else order)]
        output = self.engine.forward(chosen, get_loss("cross_entropy"))
        return [fields["logprobs"].to_torch() for fields in output.loss_fn_outputs]

    def nats(self, ours: Sequence[Tensor], theirs: Sequence[Tensor], note: str = "") -> Off:
        """How far logprobs are from others: the largest difference, or of narrow products that of most tokens."""
        difference = torch.cat([one.detach().double().cpu() for one in ours]) - torch.cat(
            [one.detach().double().cpu() for one in theirs]
        )
        if self.is_narrow:
            return Off(_most(difference), max(ROUNDINGS * self.rounding, WIDE), "nats for most tokens", note)
        return Off(float(difference.abs().max()), WIDE, note=note)

    def of_gradients(self, ours: Gradients, theirs: Gradients) -> Off:
        """How far gradients are from others, which have the same names: the largest difference, or its norm."""
        if self.is_narrow:
            limit = max(ROUNDINGS * self.gradient_rounding, WIDE)
            return Off(_relative(ours, theirs), limit, "of the gradient's norm")
        largest = max((float(each.abs().max()) for each in theirs.values()), default=0.0)
        off = max((float((ours[name] - theirs[name]).abs().max()) for name in theirs), default=0.0)
        return Off(off / max(largest, 1e-30), WIDE, "of the largest gradient")


def datum_of(tokens: list[int], weights: list[float] | None = None) -> Datum:
    """A datum of tokens, all of weight 1 unless weights are given."""
    return datum_from_tokens_weights(tokens, weights or [1.0] * len(tokens))


def own_logprobs(model: LoadedModel, datum: Datum, module: torch.nn.Module | None = None) -> Tensor:
    """[length] nats: from the logits of the model's own module, or of another, for the datum's tokens alone."""
    tokens = torch.tensor([datum.model_input.to_ints()], device=model.device)
    targets = datum.loss_fn_inputs["target_tokens"].to_torch().long().to(model.device)
    with model.precision():
        logits = (module or model.module)(input_ids=tokens, use_cache=False).logits[0]
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


def own_gradients(model: LoadedModel, datums: Sequence[Datum]) -> Gradients:
    """By name of parameter, of the summed cross-entropy of the datums, each alone; zeros where there is none."""
    with without_gradients(model), torch.enable_grad():
        for datum in datums:
            weights = datum.loss_fn_inputs["weights"].to_torch().to(model.device)
            (-(own_logprobs(model, datum) * weights).sum()).backward()
        return gradients_of(model)


def gradients_of(model: LoadedModel) -> Gradients:
    """The accumulated gradients by name of parameter; zeros where there is none."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.trainable().items()}


@contextmanager
def without_gradients(model: LoadedModel) -> Iterator[None]:
    """Inside, no gradient has accumulated; afterwards those from before are back."""
    parameters = list(model.trainable().values())
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient


@contextmanager
def in_float32(model: LoadedModel) -> Iterator[None]:
    """Inside, the model computes in float32, with the values that its weights have."""
    tensors = [t for t in [*model.module.parameters(), *model.module.buffers()] if t.is_floating_point()]
    before, narrow = [(tensor, tensor.data, tensor.grad) for tensor in tensors], model.compute_dtype
    try:
        model.compute_dtype = None
        for tensor in tensors:
            tensor.grad = None
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        yield
    finally:
        model.compute_dtype = narrow
        for tensor, data, gradient in before:
            tensor.grad = None
            tensor.data = data
            tensor.grad = gradient


def _most(difference: Tensor) -> float:
    return float(difference.double().abs().quantile(MOST))


def _relative(ours: Gradients, theirs: Gradients) -> float:
    size = sum(float(each.double().square().sum()) for each in theirs.values())
    off = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return (off / max(size, 1e-60)) ** 0.5
