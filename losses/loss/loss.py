"""`Loss`: a registered function with its configuration, as the trainer and the user call it.

The trainer sees only `couples`, `outputs`, `on_host` and `prepare`; a user calls `loss(data, logprobs_list)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...datums.errors import EmptyLossError, LengthMismatchError, MissingInput, UnknownInput, WeightsError, did_you_mean
from ...datums.types import KEY_DTYPES, Datum, as_datum
from .. import stats
from ..batch.outputs import Outputs, as_outputs
from ..batch.pack import Packed, pack
from ..reductions import Count, coarsest, count_of, total_of
from ..spec.settings import resolve_config
from ..spec.spec import LossSpec
from ..stats import Stat
from ..trace.trace import TracedLoss, trace
from .bound import BoundBatchStyle, BoundLoss, BoundSingle
from .evaluate import call
from .hosted import call_batch_style

#: Keys that every datum may carry, whatever the loss reads.
COMMON_KEYS = ("target_tokens", "weights")


class Loss:
    """A loss function with its resolved configuration. Make one with `get_loss(name, **config)`.

    Call it as `loss(data, logprobs_list) -> (scalar, metrics)`: the reduced loss with its graph, and plain floats. Scale and
    add losses to mix them: `0.9 * get_loss("grpo") + 0.1 * get_loss("cross_entropy")`.
    """

    def __init__(self, spec: LossSpec, config: Mapping[str, Any]) -> None:
        self.spec = spec
        self.config = resolve_config(spec.config, spec.name, config)
        settings = {name: getattr(self.config, name) for name in spec.config.model_fields}
        self.reduction: str = settings.pop("reduction")
        self.norm_length: int | None = settings.pop("norm_length", None)
        self.settings: dict[str, Any] = settings

    @property
    def name(self) -> str:
        """Its id."""
        return self.spec.name

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model outputs it reads, such as ("logprobs",)."""
        return self.spec.outputs

    @property
    def on_host(self) -> bool:
        """Whether it wants its inputs on the CPU: functions with the hosted APIs' signature build CPU tensors."""
        return self.spec.is_batch_style

    @property
    def couples(self) -> str:
        """What must be seen together; a reduction over sequences keeps datums whole."""
        return coarsest(self.spec.couples, "datum" if self.reduction.startswith("seq-") else "token")

    @property
    def is_mean(self) -> bool:
        """Whether it is divided by a count of its data, as under every reduction but "sum"."""
        return self.reduction != "sum"

    def prepare(self, data: Sequence[Datum], *, strict: bool = False) -> BoundLoss:
        """Check and pack `data` once, for every question about it: its denominator, which positions are read, its terms.

        Raises as `check` does.
        """
        datums = [as_datum(d) for d in data]
        if not datums:
            raise EmptyLossError(f"{self.name}: there are no datums")
        if self.spec.is_batch_style:
            return BoundBatchStyle(self, datums)
        packed = self._pack(datums)
        self._check_keys(datums, strict)
        if not len(packed.kept):
            raise EmptyLossError(
                f"{self.name}: every weight of all {len(datums)} datums is 0, so there is nothing to train on. "
                "Was the response truncated away, or the mask made for another chat template?"
            )
        count = self._count(packed)
        if count.is_zero:
            raise EmptyLossError(f"{self.name}: reduction {self.reduction!r} has nothing to divide by")
        return BoundSingle(self, datums, packed, count)

    def check(self, data: Sequence[Datum], *, strict: bool = False) -> Count:
        """Raise for anything in `data` that the loss could not use, before any forward; return the denominator.

        strict: also refuse keys that the loss does not read. A key that looks like a misspelt input is always refused.
        """
        return self.prepare(data, strict=strict).count

    def active(self, data: Sequence[Datum]) -> Tensor:
        """[all positions] bool: where it reads the model's outputs. Masked positions cost nothing."""
        if self.spec.is_batch_style:
            return BoundBatchStyle(self, [as_datum(d) for d in data]).active
        return self.pack(data).active

    def count(self, data: Sequence[Datum]) -> Count:
        """These datums' share of the denominator, from data alone; shares of parts add up."""
        return Count((None,)) if self.spec.is_batch_style else self._count(self.pack(data))

    def terms(self, data: Sequence[Datum], outputs: Any) -> tuple[Tensor, dict[str, Stat]]:
        """(total, metrics) of these datums: a 0-d tensor with its graph, not divided, and mergeable metrics.

        outputs: `Outputs`, a list with one tensor a datum, or {"logprobs": [...], "entropy": [...]}.
        """
        datums = [as_datum(d) for d in data]
        if self.spec.is_batch_style:
            return call_batch_style(self.spec, self.settings, datums, outputs)
        packed = self._pack(datums)
        return self.packed_terms(packed, as_outputs(outputs, datums, self.outputs[0]))

    def packed_terms(self, packed: Packed, outputs: Outputs) -> tuple[Tensor, dict[str, Stat]]:
        """As `terms`, of what is packed already."""
        values, found, arguments = call(self.spec, self.settings, packed, outputs)
        if (logprobs := arguments.get("logprobs")) is not None and not (
            self.spec.wants_weights or self.spec.candidates
        ):
            seen = logprobs if logprobs.ndim == 1 else logprobs[packed.weights.to(logprobs) != 0]
            found = {"nll": stats.mean(-seen), **found}
        return total_of(values, packed, self.reduction, is_weighted=self.spec.wants_weights), found

    def values(self, data: Sequence[Datum], outputs: Any) -> Tensor:
        """What the function itself returns of these datums, a loss a token, datum or pair, neither weighed nor reduced."""
        datums = [as_datum(d) for d in data]
        packed = self._pack(datums)
        return call(self.spec, self.settings, packed, as_outputs(outputs, datums, self.outputs[0]))[0]

    def __call__(self, data: Sequence[Datum], logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
        """The reduced loss with its graph, and its metrics: what the hosted APIs' custom losses return."""
        prepared = self.prepare(data)
        total, found = prepared.terms(logprobs_list)
        return total / prepared.count, stats.values(found)

    def bind(self, data: Sequence[Datum]) -> Callable[..., tuple[Tensor, dict[str, float]]]:
        """A function (data, logprobs_list) that reads these datums instead of those it is handed.

        For services that refuse inputs other than target_tokens and weights: send bare datums, keep the full ones here.
        """
        full = [as_datum(d) for d in data]

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
        return trace(self, optional, ranks)

    def pack(self, data: Sequence[Datum]) -> Packed:
        """What the loss reads of `data`, packed; the model's outputs apart."""
        return self._pack([as_datum(d) for d in data])

    def _pack(self, datums: Sequence[Datum]) -> Packed:
        return pack(datums, self.spec, self.reduction, self.config)

    def _count(self, packed: Packed) -> Count:
        if self.reduction != "sum" and self.spec.reads_tokens and bool((packed.weights < 0).any()):
            rows = (packed.weights < 0).reshape(len(packed.weights), -1).any(1)
            datum = packed.kept[int(packed.seqs.index[rows][0])]
            raise WeightsError(
                f"{self.name}: datum {datum} has negative weights, which reduction {self.reduction!r} cannot divide by. "
                "Use reduction 'sum', which takes any real weights"
            )
        return count_of(packed, self.reduction, self.norm_length)

    def _check_keys(self, datums: Sequence[Datum], strict: bool) -> None:
        """Datums with the same keys are alike here: the first with each set of keys stands for all."""
        first: dict[tuple[str, ...], int] = {}
        for i, datum in enumerate(datums):
            first.setdefault(tuple(datum.loss_fn_inputs), i)
        known = {key for wanted in self.spec.inputs for key in wanted.keys} | set(COMMON_KEYS)
        for carried, i in first.items():
            unread = [key for key in carried if key not in known]
            unfilled = [w.name for w in self.spec.inputs if not any(key in carried for key in w.keys)]
            unfilled += [key for key in COMMON_KEYS if key not in carried]
            for key in unread:
                # Keys with a meaning of their own are other losses' inputs, not misspellings.
                hint = "" if key in KEY_DTYPES else did_you_mean(key, unfilled, cutoff=0.8)
                if strict or hint:
                    raise UnknownInput(
                        f"{self.name} does not read {key!r}, which datum {i} of {len(datums)} carries.{hint} "
                        f"It reads: {', '.join(sorted(known))}"
                    )
            for key, setting in self.spec.required_if.items():
                if self.settings.get(setting) and key not in carried:
                    raise MissingInput(
                        f"{self.name} with {setting}={self.settings[setting]} reads {key!r}, which datum {i} of "
                        f"{len(datums)} does not carry. Add it, or set {setting}=0"
                    )

    def __rmul__(self, factor: float) -> Any:
        from .mixture import Mixture

        return Mixture([(float(factor), self)])

    __mul__ = __rmul__

    def __add__(self, other: Any) -> Any:
        return 1.0 * self + other

    def __repr__(self) -> str:
        settings = {"reduction": self.reduction, **self.settings}
        if self.norm_length is not None:
            settings["norm_length"] = self.norm_length
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        return f"{self.name}({shown})  # per {self.spec.per}, couples {self.couples}"
