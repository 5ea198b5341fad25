"""A loss under test: what data it can be given, and where that data may be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossbookError, LossCheckError
from ...datums.key_kinds import key_kind
from ...datums.types import Datum, ModelInput, TensorData
from ..batch.outputs import Outputs
from ..batch.pack import positions_of
from ..loss.loss import Loss
from ..loss.mixture import Mixture
from ..spec.spec import Input
from ..stats import Stat

#: Model outputs of a batch: by name, one tensor a datum.
OutputLists = dict[str, list[Tensor]]
#: Numbers of datums that a loss coupling the whole batch is tried with.
TRIED_SIZES = range(1, 9)
EMBEDDING_WIDTH = 3


@dataclass(frozen=True)
class Subject:
    """A loss and what can be known about its data before any is drawn.

    inputs: numbers that an input is drawn from, where its name does not tell what it means. claimed: laws of a family
    that the loss is held to beside those it claims itself, with their settings.
    """

    loss: Loss | Mixture
    inputs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    claimed: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def claims(self) -> Mapping[str, Any]:
        """{law: settings} of every law of a family that it must keep."""
        return {**(self.only.spec.laws if self.only else {}), **self.claimed}

    @cached_property
    def candidates(self) -> str | None:
        """The input that marks candidates as absent, in a loss over K candidates a position."""
        return None if self.only is None else self.only.spec.candidates

    @cached_property
    def parts(self) -> tuple[Loss, ...]:
        """The loss itself, or the parts of a mixture."""
        return tuple(p for _, p in self.loss.parts) if isinstance(self.loss, Mixture) else (self.loss,)

    @property
    def only(self) -> Loss | None:
        """The loss, unless it is a mixture."""
        return None if isinstance(self.loss, Mixture) else self.loss

    @property
    def name(self) -> str:
        """Its id."""
        return self.loss.name

    @property
    def couples(self) -> str:
        """What it must see together."""
        return self.loss.couples

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model outputs it reads."""
        return self.loss.outputs

    @cached_property
    def is_batch_style(self) -> bool:
        """Whether it (or a part) is fn(data, logprobs_list)."""
        return any(part.spec.is_batch_style for part in self.parts)

    @cached_property
    def reads_tokens(self) -> bool:
        """Whether it reads single positions."""
        return any(part.spec.reads_tokens for part in self.parts)

    @cached_property
    def wants_weights(self) -> bool:
        """Whether it (or a part) weighs on its own."""
        return any(part.spec.wants_weights for part in self.parts)

    @cached_property
    def has_pairs(self) -> bool:
        """Whether datums 2i and 2i+1 belong together."""
        return any(part.spec.per == "pair" for part in self.parts)

    @cached_property
    def reads(self) -> tuple[Input, ...]:
        """Every `loss_fn_inputs` key it reads, apart from targets and weights; required wherever a part needs it."""
        wanted: dict[str, Input] = {}
        for part in self.parts:
            for one in part.spec.inputs:
                needed = one.required or bool(part.settings.get(part.spec.required_if.get(one.name, "")))
                needed = needed or (one.name in wanted and wanted[one.name].required)
                wanted[one.name] = replace(one, required=needed)
        return tuple(wanted.values())

    @cached_property
    def takes_real_weights(self) -> bool:
        """Whether any real weight has a meaning, negative ones included."""
        return not self.wants_weights and all(p.reduction == "sum" and p.spec.per == "token" for p in self.parts)

    @cached_property
    def may_lack_weights(self) -> bool:
        """Whether missing weights mean ones."""
        return all(p.reduction == "sum" for p in self.parts) and not self.is_batch_style

    @cached_property
    def takes_columns(self) -> bool:
        """Whether [N, K] targets have a meaning: for losses per token whose inputs are all (log-)probabilities."""
        only = self.only
        if self.candidates is not None:
            return True
        if only is None or only.spec.per != "token" or "embeddings" in only.outputs or only.spec.wants_weights:
            return False
        if not all(has_columns(one) or one.per == "datum" for one in only.spec.inputs):
            return False
        rows_of_two = [[-0.5, -1.0], [-1.5, -2.0]]
        inputs = {one.name: rows_of_two if one.per == "token" else 0.5 for one in only.spec.inputs}
        datum = datum_of(2, {"target_tokens": [[0, 1], [1, 0]], "weights": [[1.0, 0.5], [0.5, 1.0]], **inputs})
        outputs = {name: [torch.tensor(rows_of_two if name == "logprobs" else [-0.5, -1.5])] for name in only.outputs}
        try:
            self.loss.terms([datum], outputs)
        except (LossbookError, RuntimeError, ValueError, IndexError, TypeError):
            return False
        return True

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of datums that can be handed over together; for a loss that couples the batch, found by trying.

        Raises LossCheckError when such a loss takes no number of datums at all.
        """
        step = 2 if self.has_pairs else 1
        sizes = tuple(n for n in TRIED_SIZES if n % step == 0)
        if self.couples != "batch":
            return sizes
        taken: list[int] = []
        why = ""
        for n in sizes:
            try:
                self.loss.terms(*self._plain(n))
                taken.append(n)
            except Exception as error:  # a loss may refuse a size in any way it likes
                why = f"{type(error).__name__}: {error}"
        if not taken:
            raise LossCheckError(f"{self.name} takes none of {sizes[0]} to {sizes[-1]} datums; the last refusal: {why}")
        return tuple(taken)

    def units(self, data: Sequence[Datum]) -> list[list[int]]:
        """Indices of the datums that must stay together, in order."""
        if self.couples == "batch":
            return [list(range(len(data)))]
        step = 2 if self.has_pairs else 1
        return [list(range(i, i + step)) for i in range(0, len(data), step)]

    def _plain(self, n: int) -> tuple[list[Datum], OutputLists]:
        """n one-token datums with dull contents."""
        keys: dict[str, Any] = {one.name: [0.5] if one.per == "token" else 1.0 for one in self.reads if one.required}
        if self.is_batch_style:
            keys = {key: [0.5] for key in BATCH_STYLE_KEYS}
        keys = {key: [-0.5] if key_kind(key) == "logprob" else value for key, value in keys.items()}
        data = [datum_of(1, {"target_tokens": [0], "weights": [1.0], **keys}) for _ in range(n)]
        plain: dict[str, list[float]] = {name: [0.5] for name in self.outputs}
        plain |= {"logprobs": [-0.5], "mean_logprobs": [-5.5], "embeddings": [1.0] * EMBEDDING_WIDTH}
        outputs = {name: [torch.tensor(plain[name]) for _ in range(n)] for name in self.outputs}
        return data, outputs


#: What datums carry for functions fn(data, logprobs_list), which do not say what they read.
BATCH_STYLE_KEYS = ("advantages", "logprobs", "sampling_logprobs", "ref_logprobs")


def terms(loss: Any, data: Sequence[Datum], outputs: OutputLists) -> tuple[Tensor, dict[str, Stat]]:
    """`loss.terms`, also of no datums at all, as a rank without data calls it: outputs of no rows, with a graph."""
    if data:
        return loss.terms(data, outputs)
    shapes: dict[str, tuple[int, ...]] = {"embeddings": (0, EMBEDDING_WIDTH)}
    if isinstance(loss, Loss) and loss.spec.candidates is not None:
        shapes["logprobs"] = (0, 1)
    nothing: dict[str, Any] = {
        n: torch.zeros(shapes.get(n, (0,)), dtype=torch.float64, requires_grad=True) for n in loss.outputs
    }
    return loss.terms([], Outputs(**nothing))


def datum_of(length: int, inputs: Mapping[str, Any]) -> Datum:
    """A datum of `length` dull tokens that carries `inputs`."""
    carried = {key: value if isinstance(value, TensorData) else TensorData(value) for key, value in inputs.items()}
    return Datum(ModelInput.from_ints(range(length)), carried)


def has_columns(wanted: Input) -> bool:
    """Whether an input may hold one number a target, [N, K], rather than one a position."""
    return wanted.per == "token" and wanted.kind in ("logprob", "prob")


def rows(datum: Datum) -> int:
    """Positions of a datum."""
    return positions_of(datum)
