"""`Loss`, a registered function with its settings, and `Mixture`, a weighted sum of losses, on one base.

The trainer sees only `name`, `couples`, `outputs`, `on_host`, `is_mean` and `prepare`; a user calls
`loss(data, logprobs_list)`.
"""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...datums.display import LINE, box, one_line, rows_html
from ...datums.errors import LengthMismatchError, LossConfigError, LossContractError, TraceError
from ...datums.keywords import explained
from ...datums.types import Datum, as_datums
from .. import stats
from ..batch.pack import pack
from ..batch.packed import Packed
from ..ids import LossId, MixtureId, PresetId
from ..reductions import Count, coarsest, coupled_by
from ..spec.settings import WEIGHTS_KEY, resolve_settings
from ..spec.spec import LossSpec
from ..spec.under_settings import layers_of, layers_of_all, reduced_by, top_k_of
from ..stats import Stat
from ..trace.trace import TracedLoss, trace
from .arithmetic import Arithmetic
from .bound import BoundBatchStyle, BoundLoss, BoundSingle
from .mixed import BoundMixture, BoundPart
from .shown import loss_html, on_one_line, signature_of, written
from .tensors.methods import OnTensors


class LossLike(OnTensors, Arithmetic["Mixture"]):
    """The interface of a loss, for users and for the trainer. `Loss` and `Mixture` implement it.

    Call it as `loss(data, logprobs_list) -> (scalar, metrics)`: the reduced loss with its graph, and plain floats. Scale and
    add losses to mix them: `0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy")`. Training loops that have plain tensors
    call `on_tensors`, `on_logits` or `on_hidden`.
    """

    @property
    @abstractmethod
    def parts(self) -> list[tuple[float, Loss]]:
        """(factor, loss): the parts of a mixture; a `Loss` is its own only part."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its id."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model outputs that any part reads, such as ("logprobs",)."""
        return tuple(dict.fromkeys(name for _, part in self.parts for name in part.spec.outputs))

    @property
    def on_host(self) -> bool:
        """Whether any part wants its inputs on the CPU: functions with the hosted APIs' signature build CPU tensors."""
        return any(part.spec.is_batch_style for _, part in self.parts)

    @property
    @abstractmethod
    def couples(self) -> str:
        """What must be seen together: "token", "datum", "pair", "group" or "batch"."""

    @property
    def cut_by(self) -> str:
        """What a call that was bound as a whole must still see together: all that it couples but by its reduction, whose
        denominators the bound loss knows.
        """
        return coarsest(*(part.spec.couples for _, part in self.parts))

    @abstractmethod
    def copied(self) -> LossLike:
        """A copy with the same settings; later changes of this object's attributes do not affect it."""

    @property
    def is_mean(self) -> bool:
        """Whether any part is divided by a count of its data, as under every reduction but "sum"."""
        return any(part.reduction != "sum" for _, part in self.parts)

    @abstractmethod
    def _bound(self, datums: Sequence[Datum]) -> BoundLoss:
        """The loss with these datums, packed but not checked for what only a whole call must have."""

    def prepare(self, data: Sequence[Datum], *, strict: bool = False) -> BoundLoss:
        """Check and pack `data` once, for every question about it: its denominator, active positions, terms.

        Raises as `check` does.
        """
        if isinstance(data, Tensor):
            raise LossContractError(
                f"{self.name}(data, ...) takes a list of datums. Tensors go to on_tensors(logprobs=..., mask=..., ...), on_logits or "
                "on_hidden"
            )
        bound = self._bound(as_datums(data))
        bound.check(strict=strict)
        return bound

    def check(self, data: Sequence[Datum], *, strict: bool = False) -> Count:
        """Raise for anything in `data` that the loss could not use, before any forward; return the denominator.

        strict: also refuse keys that the loss does not read. A key that looks like a misspelt input is always refused.
        """
        return self.prepare(data, strict=strict).count

    def active(self, data: Sequence[Datum]) -> Tensor:
        """[positions of all datums] bool: where it reads the model's outputs. Masked positions cost nothing."""
        return self._bound(as_datums(data)).active

    covers = active  # the older word

    def count(self, data: Sequence[Datum]) -> Count:
        """These datums' share of the denominator, from data alone; shares of parts add up."""
        return self._bound(as_datums(data)).count

    def terms(self, data: Sequence[Datum], outputs: Any) -> tuple[Tensor, dict[str, Stat]]:
        """(total, metrics) of these datums: not divided, with its graph, 0-d (one per part of a mixture); and mergeable metrics.

        outputs: `Outputs`, a list with one tensor per datum, or {"logprobs": [...], "entropy": [...]}.
        """
        return self._bound(as_datums(data)).terms(outputs)

    def values(self, data: Sequence[Datum], outputs: Any) -> Tensor:
        """What the function itself returns: one loss per token, datum, pair or group, neither weighed nor reduced."""
        return self._bound(as_datums(data)).values(outputs)

    @explained
    def __call__(self, data: Sequence[Datum], logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
        """The reduced loss with its graph, and its metrics, as the hosted APIs' custom losses return them."""
        bound = self.prepare(data)
        total, metrics = bound.terms(logprobs_list)
        return total / bound.count, stats.values(metrics)

    def bind(self, data: Sequence[Datum]) -> Callable[..., tuple[Tensor, dict[str, float]]]:
        """A function (data, logprobs_list) that reads these datums instead of the ones it is called with.

        For services that refuse inputs other than target_tokens and weights: send bare datums, keep the full ones here.
        """
        full = as_datums(data)

        def bound(data: Sequence[Any], logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
            if len(data) != len(full):
                raise LengthMismatchError(f"{self.name} is bound to {len(full)} datums but was handed {len(data)}")
            return self(full, logprobs_list)

        return bound

    def trace(self, optional: Sequence[str] = (), ranks: Mapping[str, int] | None = None) -> TracedLoss:
        """The loss as a function and torch.fx graph of one datum, for services that run it on their side (see trace.py).

        optional: inputs with a default that it should read too. ranks: where a tensor is not [T]. Raises TraceError with
        the reason, and the line of the loss's function, where there is no such graph.
        """
        if not isinstance(self, Loss):
            raise TraceError(f"{self.name} cannot be traced: trace its parts, and add their losses up")
        return trace(self.spec, self._resolved, optional, ranks)

    def _mixture(self, parts: Sequence[tuple[float, Loss]]) -> Mixture:
        return Mixture(parts)


class Loss(LossLike):
    """A loss function with its resolved settings. Make one with `get_loss(name, **config)`."""

    def __init__(self, spec: LossSpec, config: Mapping[str, Any]) -> None:
        resolved = resolve_settings(spec.config, spec.name, config, has_weights=spec.has_weights)
        if spec.conflict is not None and (why := spec.conflict(resolved.function)):
            raise LossConfigError(f"{spec.name}: {why}")
        self.spec = reduced_by(spec, resolved.reduction)
        self.config = resolved.config
        self.settings = resolved.function
        self.reduction = resolved.reduction
        self.norm_length = resolved.norm_length
        self.weights = resolved.weights
        self.top_k, self.layers = top_k_of(self.spec, resolved), layers_of(self.spec, resolved)
        self._resolved = resolved
        self.__doc__ = inspect.getdoc(spec.function)  # `help` and notebooks show what this loss computes, not the class

    def copied(self) -> Loss:
        """The same loss, with settings of its own."""
        own = copy.copy(self)
        own.config, own.settings = self.config.model_copy(), dict(self.settings)
        return own

    @property
    def parts(self) -> list[tuple[float, Loss]]:
        """Itself, times 1."""
        return [(1.0, self)]

    @property
    def name(self) -> str:
        """Its id."""
        return self.spec.name

    @property
    def label(self) -> str:
        """Its id, and the key of its weights where that is another than "weights": `cross_entropy[observation_weights]`."""
        return self.name if self.weights in (None, WEIGHTS_KEY) else f"{self.name}[{self.weights}]"

    @property
    def keys(self) -> frozenset[str]:
        """The `loss_fn_inputs` keys that it reads, apart from target tokens."""
        return frozenset(self.spec.keys if self.weights is None else {*self.spec.keys, self.weights})

    @property
    def signature(self) -> inspect.Signature:
        """What its function reads, and its settings with the values that they have here."""
        return signature_of(self.spec.function, self.settings)

    @property
    def couples(self) -> str:
        """What must be seen together; a reduction over sequences keeps datums whole, one over prompts their groups."""
        return coarsest(self.spec.couples, coupled_by(self.reduction))

    def pack(self, data: Sequence[Datum]) -> Packed:
        """What the loss reads of `data`, packed, without the model's outputs."""
        return pack(as_datums(data), self.spec, self._resolved)

    def _bound(self, datums: Sequence[Datum]) -> BoundLoss:
        return (BoundBatchStyle if self.spec.is_batch_style else BoundSingle)(self.spec, self._resolved, datums)

    def __str__(self) -> str:
        return written(self.name, self._own_settings())

    def __repr__(self) -> str:
        fields = self.spec.config.model_fields
        own = self._own_settings()
        return on_one_line(self.name, own, {key: fields[key].get_default(call_default_factory=True) for key in own})

    def _repr_html_(self) -> str:
        level = f"one loss per {self.spec.per}; couples {self.couples}"
        return loss_html(self.name, level, self.spec.function, self._own_settings())

    def _own_settings(self) -> dict[str, Any]:
        """The reduction and every setting."""
        length = {} if self.norm_length is None else {"norm_length": self.norm_length}
        weights = {} if self.label == self.name else {"weights": self.weights}
        return {"reduction": self.reduction, **self.settings, **length, **weights}


class Mixture(LossLike):
    """`0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy")`. Used wherever a `Loss` is.

    One forward serves all parts, and each part keeps its own denominator. Metrics of a part are named `part/metric`; `part`
    itself is that part's own value before its factor. With `weights="observation_weights"` a part has a mask of its own, and
    its metrics are named `cross_entropy[observation_weights]/metric`.
    """

    def __init__(self, parts: Sequence[tuple[float, Loss]]) -> None:
        self._parts = list(parts)
        names = [part.label for _, part in self.parts]
        if len(set(names)) != len(names):
            raise LossContractError(f"a mixture cannot hold one loss twice: {', '.join(names)}")
        layers_of_all([part.layers for _, part in self.parts])

    def copied(self) -> Mixture:
        """The same mixture, of copied parts."""
        return Mixture([(factor, loss.copied()) for factor, loss in self._parts])

    @property
    def parts(self) -> list[tuple[float, Loss]]:
        """(factor, loss) of each part."""
        return self._parts

    @property
    def name(self) -> str:
        """Its parts' ids."""
        return " + ".join(f"{factor:g} * {part.label}" for factor, part in self.parts)

    @property
    def couples(self) -> str:
        """What must be seen together: the coarsest of the parts."""
        return coarsest(*(part.couples for _, part in self.parts))

    def _bound(self, datums: Sequence[Datum]) -> BoundLoss:
        parts = [BoundPart(factor, part._bound(datums), part.label, part.keys) for factor, part in self.parts]
        return BoundMixture(self.name, datums, parts)

    def __str__(self) -> str:
        return " + ".join(f"{factor:g} * {part}" for factor, part in self.parts)

    def __repr__(self) -> str:
        if len(whole := str(self)) <= LINE:
            return whole
        return one_line(" + ".join(f"{factor:g} * {part.label}(...)" for factor, part in self.parts))

    def _repr_html_(self) -> str:
        return box(repr(self), rows_html(((f"{factor:g} *", str(part)) for factor, part in self.parts)))


#: What a call that takes a loss accepts; editors complete the ids.
AnyLoss = LossId | PresetId | MixtureId | str | Loss | Mixture | Callable[..., Any]
