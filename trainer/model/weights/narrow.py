"""Linear weights of a float32 model that computes in bfloat16: cast once per call, where autocast casts them in every forward.

The numbers are autocast's, bit for bit: it rounds the same weights for the same products, and adds each micro-batch's
gradient, which comes in bfloat16, to a float32 sum. Only launches are saved: two casts per weight and micro-batch become one
operation per call and two for some hundred megabytes of gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ..model import LoadedModel
from ..verdict import Verdict

#: Bytes of narrow gradients that may wait to be added to the wide sums together.
WAITING_BYTES = 2**28
#: The name of the probe among a model's verdicts.
PROBE = "narrow weights"


@contextmanager
def narrow_weights(model: LoadedModel) -> Iterator[None]:
    """Inside, the model's linear layers hold their weights in `compute_dtype`; at the end it gets its own back.

    For whole calls, backward included. Weights are read at the beginning, so they are never out of date. On success each
    weight's `.grad` is the sum of its gradients inside, in the weight's own dtype; it must be None at the beginning where a
    backward may follow. After an error it is None, unless it was set before and no backward ran.
    """
    parameters = linear_parameters(model) if casts_once(model) else []
    with _copies_in(model, parameters):
        if not torch.is_grad_enabled() or not parameters:
            yield
            return
        gradients = _WideGradients()
        hooks = [p.register_post_accumulate_grad_hook(gradients.take) for p in parameters if p.requires_grad]
        try:
            yield
            gradients.add()
        except BaseException:
            gradients.sums.clear()
            for p in parameters:
                p.grad = None
            raise
        finally:
            for hook in hooks:
                hook.remove()
    for p, total in gradients.sums.values():
        p.grad = total


def casts_once(model: LoadedModel) -> Verdict:
    """Whether copies of the linear weights give the bits that autocast gives; tried once, on weights that bfloat16 rounds."""
    if model.compute_dtype is None:
        return Verdict(False, "products are in the dtype of the weights")
    if model.root is not None:
        return Verdict(False, "the weights lie sharded over ranks")
    if PROBE not in model.verdicts:
        model.verdicts[PROBE] = _tried(model)
    return model.verdicts[PROBE]


def linear_parameters(model: LoadedModel) -> list[Parameter]:
    """Weights and biases, in float32, that only linear layers hold; not a weight that is the embedding too."""
    from transformers.pytorch_utils import Conv1D

    own: dict[Parameter, None] = {}
    others: set[Parameter] = set()
    for module in model.module.modules():
        parameters = list(module.parameters(recurse=False))
        if isinstance(module, nn.Linear | Conv1D):
            own |= dict.fromkeys(parameters)
        else:
            others |= set(parameters)
    return [p for p in own if p not in others and p.dtype == torch.float32]


@contextmanager
def _copies_in(model: LoadedModel, parameters: Sequence[Parameter]) -> Iterator[None]:
    """Inside, the parameters hold copies of their data in the model's `compute_dtype`."""
    wide = [p.data for p in parameters]
    narrow = [torch.empty_like(data, dtype=model.compute_dtype) for data in wide]
    if wide:
        torch._foreach_copy_(narrow, wide)  # type: ignore[attr-defined]
    try:
        for p, data in zip(parameters, narrow, strict=True):
            p.data = data
        yield
    finally:
        for p, data in zip(parameters, wide, strict=True):
            p.data = data


class _WideGradients:
    """Float32 sums of gradients that come in a narrower dtype; a few wait, to be added together."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Parameter, Tensor]] = {}
        self._waiting: dict[int, tuple[Parameter, Tensor]] = {}
        self._bytes = 0

    def take(self, parameter: Tensor) -> None:
        """Take the gradient off a parameter; a hook that runs when it is complete."""
        assert isinstance(parameter, Parameter)
        assert parameter.grad is not None
        if id(parameter) in self._waiting:  # of the micro-batch before
            self.add()
        self._waiting[id(parameter)] = parameter, parameter.grad
        self._bytes += parameter.grad.nbytes
        parameter.grad = None
        if self._bytes > WAITING_BYTES:
            self.add()

    def add(self) -> None:
        """Add those that wait."""
        if not self._waiting:
            return
        narrow = [gradient for _, gradient in self._waiting.values()]
        wide = [torch.empty_like(gradient, dtype=torch.float32) for gradient in narrow]
        torch._foreach_copy_(wide, narrow)  # type: ignore[attr-defined]
        pairs = [(self.sums[key][1], new) for key, new in zip(self._waiting, wide, strict=True) if key in self.sums]
        if pairs:
            sums, news = zip(*pairs, strict=True)
            torch._foreach_add_(sums, news)  # type: ignore[attr-defined]
        for (key, (p, _)), new in zip(self._waiting.items(), wide, strict=True):
            self.sums.setdefault(key, (p, new))
        self._waiting, self._bytes = {}, 0


def _tried(model: LoadedModel) -> Verdict:
    parameters = linear_parameters(model)
    if not parameters:
        return Verdict(False, "no linear layer has weights of its own in float32")
    own = [p.data for p in parameters]
    was_training = model.module.training
    model.module.eval()
    try:  # weights that were read in bfloat16 would hide where they are read in float32
        for p, data in zip(parameters, torch._foreach_mul(own, 1.001), strict=True):  # type: ignore[attr-defined]
            p.data = data
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            by_autocast = _hidden(model)
            with _copies_in(model, parameters):
                by_copies = _hidden(model)
    finally:
        for p, data in zip(parameters, own, strict=True):
            p.data = data
        model.module.train(was_training)
    if by_autocast.dtype == by_copies.dtype and torch.equal(by_autocast, by_copies):
        return Verdict(True, off=0.0)
    return Verdict(False, f"{type(model.module).__name__} reads linear weights in float32 too")


def _hidden(model: LoadedModel) -> Tensor:
    tokens = (torch.arange(8, device=model.device)[None] * 7 + 3) % model.vocab_size
    options = {} if model.kind == "encoder" else {"use_cache": False}
    with model.precision():
        return model.backbone(tokens, **options).last_hidden_state
