"""`Loss`: a registered function with its configuration, as the trainer and the user call it.

The trainer sees only `couples`, `outputs`, `check`, `covers`, `count` and `terms`; a user calls `loss(data, logprobs_list)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..datums.errors import (
    EmptyLossError,
    LengthMismatchError,
    LossContractError,
    MissingInput,
    UnknownInput,
    WeightsError,
    did_you_mean,
)
from ..datums.types import KEY_DTYPES, Datum, as_datum
from . import stats
from .batch_style import call_batch_style
from .config import resolve_config
from .outputs import Outputs, as_outputs, check_finite_output
from .packing import Packed, pack, positions_of
from .reductions import Count, coarsest, count_of, total_of
from .signature import LossSpec
from .stats import Stat
from .trace import TracedLoss, trace

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

    def check(self, data: Sequence[Datum], *, strict: bool = False) -> Count:
        """Raise for anything in `data` that the loss could not use, before any forward; return the denominator.

        strict: also refuse keys that the loss does not read. A key that looks like a misspelt input is always refused.
        """
        datums = [as_datum(d) for d in data]
        if not datums:
            raise EmptyLossError(f"{self.name}: there are no datums")
        if self.spec.is_batch_style:
            return Count((None,))
        packed = self.pack(datums)
        self._check_keys(datums, strict)
        if not packed.kept:
            raise EmptyLossError(
                f"{self.name}: every weight of all {len(datums)} datums is 0, so there is nothing to train on. "
                "Was the response truncated away, or the mask made for another chat template?"
            )
        count = self._count(packed)
        if count.is_zero:
            raise EmptyLossError(f"{self.name}: reduction {self.reduction!r} has nothing to divide by")
        return count

    def covers(self, data: Sequence[Datum]) -> Tensor:
        """[all positions] bool: where it reads the model's outputs. Masked positions cost nothing."""
        if self.spec.is_batch_style:
            return torch.ones(sum(positions_of(as_datum(d)) for d in data), dtype=torch.bool)
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
            total, found = call_batch_style(self.spec, self.settings, datums, outputs)
            return total, found
        packed = self.pack(datums)
        values, found, arguments = self._called(packed, datums, outputs)
        if (logprobs := arguments.get("logprobs")) is not None and not (
            self.spec.wants_weights or self.spec.candidates
        ):
            seen = logprobs if logprobs.ndim == 1 else logprobs[packed.weights.to(logprobs) != 0]
            found = {"nll": stats.mean(-seen), **found}
        return total_of(values, packed, self.reduction, is_weighted=self.spec.wants_weights), found

    def values(self, data: Sequence[Datum], outputs: Any) -> Tensor:
        """What the function itself returns of these datums, a loss a token, datum or pair, neither weighed nor reduced."""
        datums = [as_datum(d) for d in data]
        return self._called(self.pack(datums), datums, outputs)[0]

    def __call__(self, data: Sequence[Datum], logprobs_list: Any) -> tuple[Tensor, dict[str, float]]:
        """The reduced loss with its graph, and its metrics: what the hosted APIs' custom losses return."""
        count = self.check(data)
        total, found = self.terms(data, logprobs_list)
        return total / count, stats.values(found)

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
        return pack([as_datum(d) for d in data], self.spec, self.reduction, self.config)

    def _called(
        self, packed: Packed, datums: Sequence[Datum], outputs: Any
    ) -> tuple[Tensor, dict[str, Stat], dict[str, Any]]:
        """What the function returns, in the shape it must have, and the arguments it was given."""
        arguments = self._arguments(packed, as_outputs(outputs, datums, self.outputs[0]))
        with stats.counting(self._slots(packed)):
            values, found = _values_and_stats(self.spec.function(*arguments.values(), **self.settings), self.name)
        self._check_shape(values, arguments, packed)
        return values, found, arguments

    def _count(self, packed: Packed) -> Count:
        if self.reduction != "sum" and self.spec.reads_tokens and bool((packed.weights < 0).any()):
            datum = packed.kept[
                int((packed.seqs.index[(packed.weights < 0).reshape(len(packed.weights), -1).any(1)])[0])
            ]
            raise WeightsError(
                f"{self.name}: datum {datum} has negative weights, which reduction {self.reduction!r} cannot divide by. "
                "Use reduction 'sum', which takes any real weights"
            )
        return count_of(packed, self.reduction, self.norm_length)

    def _arguments(self, packed: Packed, outputs: Outputs) -> dict[str, Any]:
        """The positional arguments by name, in the model outputs' precision (float32 at least) and on their device."""
        like = _full_precision(outputs.rows(self.outputs[0], packed))
        arguments: dict[str, Any] = {}
        for name in self.spec.parameters:
            if name in self.outputs:
                value = _full_precision(outputs.rows(name, packed))
                value = self._neutralised(value, packed) if name == "logprobs" else self._over_targets(value, packed)
                check_finite_output(name, value, packed, outputs, self.name)
                arguments[name] = value
            elif name == "seqs":
                arguments[name] = packed.seqs.to(like)
            elif name == "weights":
                arguments[name] = packed.weights.to(like)
            else:
                value = packed.inputs[name]
                is_float = value is not None and value.is_floating_point()
                arguments[name] = value if value is None else value.to(like if is_float else like.device)
        return arguments

    def _slots(self, packed: Packed) -> Tensor | None:
        """[T, K] bool: beside K targets, which of them there are. A row of fewer targets is filled up, and so is every row
        of a datum beside wider ones: metrics must not count what depends on the company."""
        is_wide = packed.weights.ndim == 2 and not self.spec.wants_weights
        return packed.weights != 0 if is_wide else None

    def _neutralised(self, logprobs: Tensor, packed: Packed) -> Tensor:
        """[T, K] logprobs with 0 where the weight is 0, or the candidate absent, so that nothing there reaches value or
        gradient. Of no datums, a loss over candidates still sees two dimensions."""
        if logprobs.ndim == 1 and self.spec.candidates:
            logprobs = logprobs.unsqueeze(1)
        if logprobs.ndim == 1 or self.spec.wants_weights:
            return logprobs
        masked = (packed.weights == 0 if packed.absent is None else packed.absent).to(logprobs.device)
        return torch.where(masked, torch.zeros((), dtype=logprobs.dtype, device=logprobs.device), logprobs)

    def _over_targets(self, values: Tensor, packed: Packed) -> Tensor:
        """Beside [T, K] logprobs an output of one number a position is one a target too, as inputs are."""
        if packed.weights.ndim == 1 or values.ndim == 2 or self.spec.wants_weights:
            return values
        return values.unsqueeze(1).expand(packed.weights.shape)

    def _check_shape(self, values: Tensor, arguments: Mapping[str, Any], packed: Packed) -> None:
        expected: tuple[int, ...] = (packed.units,)
        if self.spec.per == "token":
            given = [arguments[name] for name in self.outputs if name != "embeddings"]
            expected = tuple(given[0].shape) if given and not self.spec.candidates else (len(packed.weights),)
        elif self.spec.per == "batch":
            expected = ()
        if tuple(values.shape) != expected:
            raise LossContractError(
                f"{self.name} is per {self.spec.per}, so it must return losses of shape {list(expected)}, not "
                f"{list(values.shape)}. Return them unreduced: the reduction is not the loss's"
            )

    def _check_keys(self, datums: Sequence[Datum], strict: bool) -> None:
        known = {key for wanted in self.spec.inputs for key in wanted.keys} | set(COMMON_KEYS)
        for i, datum in enumerate(datums):
            carried = datum.loss_fn_inputs
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
                if self.settings.get(setting) and key not in datum.loss_fn_inputs:
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


def _values_and_stats(returned: Any, name: str) -> tuple[Tensor, dict[str, Stat]]:
    values, found = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, {})
    if not isinstance(values, Tensor):
        raise LossContractError(
            f"{name} must return a tensor of losses, or (losses, metrics), not {type(returned).__name__}"
        )
    if not isinstance(found, Mapping):
        raise LossContractError(f"{name} must return its metrics as a dict, not {type(found).__name__}")
    for key, stat in found.items():
        if not isinstance(stat, Stat):
            raise LossContractError(
                f"{name}: metric {key!r} is a {type(stat).__name__}, which cannot be merged over micro-batches. "
                "Return stats.mean(tensor), stats.sum, stats.min or stats.max of unreduced values"
            )
    return values, dict(found)


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
