"""The loss under test: which data it accepts, and which datums must stay together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossbookError, LossCheckError
from ...datums.inputs import key_kind
from ...datums.types import Datum, ModelInput, TensorData
from ..batch.groups import group_ids, joined
from ..batch.positions import positions_of
from ..loss.loss import Loss, Mixture
from ..spec.layers import LAYER_EMBEDDINGS
from ..spec.settings import WEIGHTS_KEY
from ..spec.spec import Input
from ..spec.top import TOP_LOGPROBS, TOP_TOKENS
from ..spec.vocabulary import TOKEN_EMBEDDINGS, VOCABULARY_OUTPUTS
from .outside import restored

#: Model outputs of a batch: by name, one tensor per datum.
OutputLists = dict[str, list[Tensor]]
#: Batch sizes tried with a loss that couples the whole batch.
TRIED_SIZES = range(1, 9)
EMBEDDING_WIDTH = 3
VOCABULARY_WIDTH = 4


@dataclass(frozen=True)
class LossUnderTest:
    """A loss, and what its declaration says about its data.

    wrapped: the loss itself. inputs: the values to draw an input from, where its name does not say. extra_laws:
    {law: settings}: family laws to check besides those the loss is registered with.
    """

    wrapped: Loss | Mixture
    inputs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    extra_laws: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def laws(self) -> Mapping[str, Any]:
        """{law: settings} of every family law that it must keep."""
        return {**(self.only.spec.laws if self.only else {}), **self.extra_laws}

    @cached_property
    def candidates(self) -> str | None:
        """The input that marks absent candidates, in a loss over K candidates per position, or a mixture that holds one."""
        return next((part.spec.candidates for part in self.parts if part.spec.candidates is not None), None)

    @cached_property
    def parts(self) -> tuple[Loss, ...]:
        """The loss itself, or the losses of a mixture."""
        return tuple(part for _, part in self.wrapped.parts)

    @property
    def only(self) -> Loss | None:
        """The loss; None for a mixture."""
        return self.wrapped if isinstance(self.wrapped, Loss) else None

    @property
    def name(self) -> str:
        """Its id; with the key of its weights where it names one."""
        return self.wrapped.label if isinstance(self.wrapped, Loss) else self.wrapped.name

    @property
    def couples(self) -> str:
        """What it must see together: "token", "datum", "pair", "group" or "batch"."""
        return self.wrapped.couples

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model outputs it reads."""
        return self.wrapped.outputs

    @cached_property
    def is_batch_style(self) -> bool:
        """Whether it, or a part of it, is a fn(data, logprobs_list)."""
        return any(part.spec.is_batch_style for part in self.parts)

    @cached_property
    def reads_tokens(self) -> bool:
        """Whether it reads values per position."""
        return any(part.spec.reads_tokens for part in self.parts)

    @cached_property
    def wants_weights(self) -> bool:
        """Whether it, or a part of it, applies the weights itself."""
        return any(part.spec.wants_weights for part in self.parts)

    @cached_property
    def has_pairs(self) -> bool:
        """Whether datums 2i and 2i+1 belong together."""
        return any(part.spec.per == "pair" for part in self.parts)

    @cached_property
    def reads(self) -> tuple[Input, ...]:
        """Every `loss_fn_inputs` key it reads except targets and weights; required if any part requires it."""
        wanted: dict[str, Input] = {}
        for part in self.parts:
            for one in part.spec.inputs:
                needed = one.required or bool(part.settings.get(part.spec.required_if.get(one.name, "")))
                needed = needed or (one.name in wanted and wanted[one.name].required)
                wanted[one.name] = replace(one, required=needed)
        return tuple(wanted.values())

    @cached_property
    def takes_real_weights(self) -> bool:
        """Whether weights may be any real number, also negative."""
        return not self.wants_weights and all(p.reduction == "sum" and p.spec.per == "token" for p in self.parts)

    @cached_property
    def weight_keys(self) -> tuple[str, ...]:
        """The keys that its parts take their weights from."""
        return tuple(dict.fromkeys(p.weights for p in self.parts if p.weights is not None)) or (WEIGHTS_KEY,)

    @cached_property
    def weight_keys_of_candidates(self) -> set[str]:
        """Those of `weight_keys` that weigh positions, not targets, since a loss over candidates reads them."""
        return {p.weights or WEIGHTS_KEY for p in self.parts if p.spec.candidates is not None}

    @cached_property
    def top_k(self) -> int:
        """How many of the likeliest tokens its parts read at most; 0 for none."""
        return max(part.top_k for part in self.parts)

    @cached_property
    def layers(self) -> int:
        """Of how many layers its parts read embeddings; 0 for none."""
        return max(len(part.layers) for part in self.parts)

    @cached_property
    def may_lack_weights(self) -> bool:
        """Whether missing weights count as ones."""
        return all(p.reduction == "sum" for p in self.parts) and not self.is_batch_style

    @cached_property
    def takes_columns(self) -> bool:
        """Whether it accepts [N, K] targets, as losses per token do whose inputs are all (log-)probabilities."""
        only = self.only
        if self.candidates is not None:
            return True
        if only is None or only.spec.per != "token" or only.spec.wants_weights:
            return False
        if {"embeddings", LAYER_EMBEDDINGS, TOKEN_EMBEDDINGS} & set(only.outputs):
            return False
        if not all(has_columns(one) or one.per == "datum" for one in only.spec.inputs):
            return False
        rows_of_two = [[-0.5, -1.0], [-1.5, -2.0]]
        inputs = {
            one.name: rows_of_two if one.per == "token" else [0.5] if one.is_vector else 0.5 for one in only.spec.inputs
        }
        weights = {self.weight_keys[0]: [[1.0, 0.5], [0.5, 1.0]]}
        datum = datum_of(2, {"target_tokens": [[0, 1], [1, 0]], **weights, **inputs})
        outputs = {name: [torch.tensor(rows_of_two if name == "logprobs" else [-0.5, -1.5])] for name in only.outputs}
        try:
            with restored():
                self.wrapped.terms([datum], outputs)
        except (LossbookError, RuntimeError, ValueError, IndexError, TypeError):
            return False
        return True

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that the loss accepts; for a loss that couples the batch, determined by trying.

        Raises LossCheckError when such a loss accepts none of them.
        """
        step = 2 if self.has_pairs else 1
        sizes = tuple(n for n in TRIED_SIZES if n % step == 0)
        if self.couples != "batch":
            return sizes
        taken: list[int] = []
        why = ""
        for n in sizes:
            try:
                with restored():
                    self.wrapped.terms(*self._simplest(n))
                taken.append(n)
            except Exception as error:  # a loss may raise anything for a size it does not accept
                why = f"{type(error).__name__}: {error}"
        if not taken:
            raise LossCheckError(
                f"{self.name} accepts no batch of {sizes[0]} to {sizes[-1]} datums; the last error: {why}"
            )
        return tuple(taken)

    @cached_property
    def is_laid_out(self) -> bool:
        """Whether it reads tokens of datums that it knows by their places in the batch, so that none may be masked whole."""
        parts = [part for part in self.parts if part.spec.reads_tokens and part.spec.couples == "batch"]
        declared = [part for part in parts if part.spec.groups is not None]  # `sizes` tries a loss, which may fail
        return any(part.spec.members(self.sizes[-1], part.config) is not None for part in declared)

    @cached_property
    def dtype(self) -> torch.dtype:
        """float64; float32 for a loss that takes nothing else, as most fused kernels do."""
        takes_double, takes_single = (self._tried(dtype) is not None for dtype in (torch.float64, torch.float32))
        return torch.float32 if takes_single and not takes_double else torch.float64

    @cached_property
    def precision(self) -> torch.dtype:
        """The precision of its numbers: float32 for a loss that takes float64 and casts it to float32."""
        if self.dtype == torch.float32:
            return torch.float32
        exact, single, half = (
            self._tried(torch.float64, via) for via in (torch.float64, torch.float32, torch.bfloat16)
        )
        # A loss that is the same for bfloat16 as well does not look at its outputs here, or keeps too few digits.
        is_single = exact is not None and exact == single and exact != half
        return torch.float32 if is_single else torch.float64

    @property
    def note(self) -> str:
        """A word on how it is checked, where that is not in float64."""
        if self.precision == torch.float64:
            return ""
        why = "it takes no float64" if self.dtype == torch.float32 else "it computes in float32"
        return f"with float32's tolerances, because {why}"

    def with_wrapped(self, wrapped: Loss | Mixture) -> LossUnderTest:
        """The same with another loss, which computes in the same precision."""
        other = replace(self, wrapped=wrapped)
        vars(other).update(dtype=self.dtype, precision=self.precision)  # cached properties
        return other

    def _tried(self, dtype: torch.dtype, via: torch.dtype = torch.float64) -> float | None:
        """The total of simple data of off-grid outputs of `dtype`, rounded to `via`; None where the loss raises."""
        try:
            data, outputs = self._simplest(self.sizes[-1] if self.couples == "batch" else 2)
            own = {
                name: tensors if name == TOP_TOKENS else [(t.double() * 0.997).to(via).to(dtype) for t in tensors]
                for name, tensors in outputs.items()
            }
            with restored():
                return float(self.wrapped.terms(data, own)[0].sum().detach())
        except Exception:  # whatever is wrong, a check will report it
            return None

    def groups(self, data: Sequence[Datum]) -> list[list[int]]:
        """Indices of the datums that must stay together, in order."""
        if self.couples == "batch":
            return [list(range(len(data)))]
        if self.couples == "group":
            return joined(len(data), group_ids(data), pairs=self.has_pairs)
        step = 2 if self.has_pairs else 1
        return [list(range(i, i + step)) for i in range(0, len(data), step)]

    def _simplest(self, n: int) -> tuple[list[Datum], OutputLists]:
        """n datums of one token each, all alike, and outputs for them."""
        keys: dict[str, Any] = {one.name: [0.5] if one.per == "token" else 1.0 for one in self.reads if one.required}
        if self.is_batch_style:
            keys = {key: [0.5] for key in BATCH_STYLE_KEYS}
        keys = {key: [-0.5] if key_kind(key) == "logprob" else value for key, value in keys.items()}
        keys |= {one.name: [1.0] * EMBEDDING_WIDTH for one in self.reads if one.required and one.is_vector}
        targets: Any = [0]
        if self.candidates is not None:
            keys, targets = {key: [value] if value == [-0.5] else value for key, value in keys.items()}, [[0]]
        keys = {**{key: [1.0] for key in self.weight_keys}, **keys}
        data = [datum_of(1, {"target_tokens": targets, **keys}) for _ in range(n)]
        row: dict[str, list[float]] = {name: [0.5] for name in self.outputs}
        row |= {"logprobs": [-0.5], "mean_logprobs": [-5.5], "embeddings": [1.0] * EMBEDDING_WIDTH}
        row |= {key: [[-0.5, -0.932752]] for key in VOCABULARY_OUTPUTS}  # type: ignore[list-item]
        row |= {TOKEN_EMBEDDINGS: [[1.0] * EMBEDDING_WIDTH]}  # type: ignore[list-item]
        row |= {LAYER_EMBEDDINGS: [[1.0] * EMBEDDING_WIDTH] * self.layers}  # type: ignore[list-item]
        if self.candidates is not None:
            row["logprobs"] = [[-0.5]]  # type: ignore[list-item]
        top = torch.arange(self.top_k).reshape(1, -1)
        given = {TOP_TOKENS: top, TOP_LOGPROBS: -1.0 - top / 4}
        outputs = {
            name: [given[name] if name in given else torch.tensor(row[name]) for _ in range(n)] for name in self.outputs
        }
        return data, outputs


#: What datums carry for a fn(data, logprobs_list), whose signature names no inputs.
BATCH_STYLE_KEYS = ("advantages", "logprobs", "sampling_logprobs", "ref_logprobs")


def datum_of(length: int, inputs: Mapping[str, Any]) -> Datum:
    """A datum of the tokens 0, 1, ... up to `length` that carries `inputs`."""
    carried = {key: value if isinstance(value, TensorData) else TensorData(value) for key, value in inputs.items()}
    return Datum(ModelInput.from_ints(range(length)), carried)


def has_columns(wanted: Input) -> bool:
    """Whether an input may be [N, K], one number per target, instead of one per position."""
    return wanted.per == "token" and wanted.kind in ("logprob", "prob")


def rows(datum: Datum) -> int:
    """The number of positions of a datum."""
    return positions_of(datum)
