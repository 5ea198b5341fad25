"""The methods of a loss that take plain tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ....datums.errors import LossContractError, MissingInput, UnknownInput
from ....datums.keywords import explained_class
from ...spec.vocabulary import TEACHER
from .call import Call, call_of
from .evaluation import Denominator, evaluated, own_count, shares
from .metrics import Metrics
from .names import Part
from .packing import Reader
from .sources import HEAD_OUTPUTS, sources


@explained_class
class OnTensors(ABC):
    """A loss on tensors, as a training loop has them: the function, settings, denominators and checks of `loss(data, ...)`.

    Tensors are padded, [B, T] with a mask, or packed, [P] (or [1, P]) with `cu_seqlens` [S + 1], where sequence i is
    positions cu_seqlens[i] to cu_seqlens[i + 1]. A row, or a sequence, is a datum: rows 2i and 2i + 1 are a pair.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its id."""

    @property
    @abstractmethod
    def couples(self) -> str:
        """What must be seen together."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[tuple[float, Part]]:
        """(factor, loss) of each part."""

    def on_tensors(
        self,
        logprobs: Any = None,
        *,
        mask: Any = None,
        cu_seqlens: Any = None,
        denominator: Denominator = None,
        **tensors: Any,
    ) -> tuple[Tensor, Metrics]:
        """The reduced loss, 0-d with its graph, and its metrics, of model outputs and inputs as tensors.

        logprobs      [B, T] or [P]  nats, of the tokens; [B, T, K] or [P, K] of K targets or candidates per position
        mask          as logprobs  bool, 0 and 1, or float weights; [B, T] in a loss over candidates. Where it is 0 nothing is
                      read: NaN may stand there. Padded tensors need one; packed ones without one count every position, under
                      reduction "sum"
        cu_seqlens    [S + 1] integers, 0 to P. Packed tensors of a loss that couples no tokens do without
        denominator   what the whole optimizer step divides by, where this call sees a part of it: the sum of `count_tensors`
                      over micro-batches and ranks. Without it: this call's own
        tensors       what else the loss reads, by name: the model's `entropy`, `values`, ... like logprobs, `embeddings`
                      [rows, D]; inputs per position, or one per row [B] (or [S]), which holds for all of its positions. A loss
                      with a weight key of its own reads its mask by that name, and `mask` is the others'

        Metrics are floats, read from the device when first asked for; those of micro-batches add up (`Metrics`).

        Raises UnknownInput, MissingInput, ShapeError, DtypeError, NonFiniteLossInput, InvalidLogprobError, LabelError,
        WeightsError, EmptyLossError, LossContractError; messages name key, row and position.
        """
        call = call_of(self, {"logprobs": logprobs, **tensors}, mask=mask, cu_seqlens=cu_seqlens)
        return evaluated(call, denominator)

    def on_logits(
        self,
        logits: Tensor,
        labels: Any,
        *,
        mask: Any = None,
        cu_seqlens: Any = None,
        denominator: Denominator = None,
        temperature: float = 1.0,
        teacher_logits: Tensor | None = None,
        **tensors: Any,
    ) -> tuple[Tensor, Metrics]:
        """As `on_tensors`, with logprobs, entropy, logsumexp and mean logprobs of the model's logits.

        logits        [B, T, V] or [P, V]  any float dtype; no float32 copy of them is made
        labels        [B, T] or [P] int64, the token that each position predicts, so already shifted by one; -100: ignored.
                      [B, T, K] or [P, K] of K targets or candidates
        mask          float weights, or which of the labels count; without it all that are not -100
        temperature   divides the logits, as of a policy that is sampled at it
        teacher_logits  [B, T, V] or [P, V]  at the same positions, of losses over whole distributions; not divided by temperature
        tensors       inputs of the loss, and outputs that are not made of logits (`values`, `embeddings`)

        Raises TokenRangeError for labels outside the vocabulary where the mask is not 0, and as `on_tensors` does.
        """
        call = self._on_labels(tensors, labels, mask, cu_seqlens, has_teacher=teacher_logits is not None)
        flat, teacher = call.flat("logits", logits, labels), None
        if teacher_logits is not None:
            teacher = sources().of_logits(call.flat("teacher_logits", teacher_logits, labels), 1.0)
        return evaluated(call, denominator, sources().of_logits(flat, temperature), teacher)

    def on_hidden(
        self,
        hidden: Tensor,
        head: Any,
        labels: Any,
        *,
        mask: Any = None,
        cu_seqlens: Any = None,
        denominator: Denominator = None,
        temperature: float = 1.0,
        teacher_hidden: Tensor | None = None,
        teacher_head: Any = None,
        **tensors: Any,
    ) -> tuple[Tensor, Metrics]:
        """As `on_logits`, but computes the output layer itself, in tiles: it holds no [tokens, vocabulary] tensor, and
        masked positions cost nothing.

        hidden   [B, T, d] or [P, d], what the model hands to its output layer
        head     the causal language model (its config says soft cap and scale), its linear output layer, the layer's weight
                 [V, d] (these have neither), or a `Head`. Gradients reach hidden, weight and bias

        teacher_hidden [B, T, d'] or [P, d'] and teacher_head: a teacher's, at the same positions

        Raises ModelError for another head, and as `on_logits` does.
        """
        if (teacher_hidden is None) != (teacher_head is None):
            raise MissingInput(f"{self.name}: teacher_hidden and teacher_head go together, and one was not given")
        call = self._on_labels(tensors, labels, mask, cu_seqlens, has_teacher=teacher_hidden is not None)
        flat, teacher = call.flat("hidden", hidden, labels), None
        if teacher_hidden is not None:
            teacher = sources().of_hidden(call.flat("teacher_hidden", teacher_hidden, labels), teacher_head, 1.0)
        return evaluated(call, denominator, sources().of_hidden(flat, head, temperature), teacher)

    def _on_labels(
        self, tensors: dict[str, Any], labels: Any, mask: Any, cu_seqlens: Any, *, has_teacher: bool
    ) -> Call:
        outputs = {name for _, part in self.parts for name in part.spec.outputs}
        if not outputs & set(HEAD_OUTPUTS):
            raise LossContractError(
                f"{self.name} reads {', '.join(sorted(outputs))}, which is not made of logits: give it to on_tensors"
            )
        if labels is None:
            raise MissingInput(f"{self.name}: labels were not given: the token that each position predicts, or -100")
        if has_teacher and TEACHER not in outputs:
            raise UnknownInput(f"{self.name} reads no teacher's distributions: leave the teacher out")
        if not has_teacher and TEACHER in outputs and TEACHER not in tensors:
            raise MissingInput(
                f"{self.name} compares with a teacher, which was not given: teacher_logits= of on_logits, teacher_hidden= and "
                "teacher_head= of on_hidden"
            )
        computed = (*HEAD_OUTPUTS, TEACHER) if has_teacher else HEAD_OUTPUTS
        return call_of(self, tensors, mask=mask, labels=labels, cu_seqlens=cu_seqlens, computed=computed)

    def count_tensors(self, *, mask: Any = None, labels: Any = None, cu_seqlens: Any = None, **tensors: Any) -> Tensor:
        """This data's share of the denominator: shares of micro-batches and ranks add up, also by an all-reduce.

        Give it what you give `on_tensors`, or the labels of `on_logits`; outputs of the model may be left out, as may inputs
        of losses that count tokens or rows.

        Returns a float64 tensor on the mask's device: 0-d; of a mixture [parts]. It is 0 for a sum, which is not divided.
        """
        call = call_of(self, tensors, mask=mask, labels=labels, cu_seqlens=cu_seqlens, counts_only=True)
        with torch.no_grad():
            reader = Reader(call)
            count = own_count(self, [None if p.spec.is_batch_style else reader.packed(p) for _, p in self.parts])
        device = next(
            (one.device for one in (*call.masks.values(), call.labels) if one is not None), torch.device("cpu")
        )
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which has no wider one
        numbers = torch.tensor(shares(count), dtype=dtype, device=device)
        return numbers[0] if self.parts[0][1] is self else numbers
