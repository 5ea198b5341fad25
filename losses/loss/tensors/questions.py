"""What is asked about numbers on a device: whether they are finite, log-probabilities, tokens of the vocabulary, where it counts.

`Reader` asks all of it in one read; the messages name row and position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....datums.errors import LossbookError, NonFiniteLossInput, TokenRangeError
from ....datums.inputs import MAX_LOGPROB, key_kind
from ...batch.checks import wrong_value
from ...batch.pack import as_read
from ...batch.positions import active_targets, weighted_positions
from ...batch.vocabulary import Distributions
from ...spec.spec import Input
from ...spec.top import TOP_TOKENS
from ...spec.vocabulary import VOCABULARY_OUTPUTS
from .call import Call
from .names import Part


def ask_output(call: Call, part: Part, name: str, values: Tensor | Distributions, rows: Tensor | None = None) -> None:
    """Whether an output is finite where it counts, and at most 0 where it must be; it is of `rows` of the positions."""
    if name == TOP_TOKENS:
        return
    is_logprob = key_kind(name) == "logprob" and isinstance(values, Tensor)
    values = values.detach() if isinstance(values, Tensor) else values.size()
    weights = call.weights(part, values.device)
    present = _present(call, part, values.device) if name == "logprobs" else None
    if rows is not None:
        weights, present = weights[rows], None if present is None else present[rows]
    checked = weighted_positions(weights, values)
    _ask(call, part, name, values, checked if present is None else checked & present, is_logprob, rows)


def ask_embeddings(call: Call, part: Part, name: str, vectors: Tensor) -> None:
    """Whether all vectors [rows, D], or [rows, L, D], are finite."""
    wrong = ~torch.isfinite(vectors.detach())

    def error() -> LossbookError:
        row, *columns = wrong.nonzero()[0].tolist()
        return NonFiniteLossInput(
            f"{part.name}: {name} of row {row} is {float(vectors[(row, *columns)].detach()):g} at {columns[-1]}"
        )

    call.checks.add(wrong, error)


def ask_input(call: Call, part: Part, wanted: Input) -> None:
    """The same of an input per position; and in a loss over candidates, whether each position that counts has one."""
    level, values = call.inputs.get(wanted.name, ("row", None))
    if values is None or level == "row" or wanted.per == "datum":
        return
    weights = call.weights(part, values.device)
    read, checked = as_read(values, weights, wanted.name, part.spec)
    if read.is_floating_point():
        _ask(call, part, wanted.name, read, checked, wanted.kind == "logprob")
    if wanted.name == part.spec.candidates:
        nothing = (values == -torch.inf).all(1) & active_targets(weights)
        call.checks.add(nothing, _no_candidate(call, part, nothing, values.shape[1]))


def ask_labels(call: Call, labels: Tensor, vocabulary: int) -> None:
    """Whether labels that count lie in the vocabulary."""
    counts = torch.zeros_like(labels, dtype=torch.bool)  # for any part
    for part in (part for _, part in call.loss.parts if part.spec.reads_tokens):
        checked = weighted_positions(call.weights(part, labels.device), labels)
        present = _present(call, part, labels.device)
        counts |= checked if present is None else checked & present
    outside = counts & ((labels < 0) | (labels >= vocabulary))

    def error() -> LossbookError:
        at = outside.nonzero()[0].tolist()
        row, position = call.where(at[0])
        return TokenRangeError(
            f"labels of {call.layout.row} {row} is {int(labels[tuple(at)])} at position {position}, outside the vocabulary "
            f"[0, {vocabulary}). To ignore a position give it the label -100, or the mask 0"
        )

    call.checks.add(outside, error)


def _present(call: Call, part: Part, device: torch.device) -> Tensor | None:
    """[positions, K] bool, in a loss over candidates: which of them a position has."""
    marks = call.inputs.get(part.spec.candidates or "")
    return None if marks is None else marks[1].to(device) != -torch.inf


def _ask(
    call: Call, part: Part, name: str, values: Tensor, checked: Tensor, is_logprob: bool, rows: Tensor | None = None
) -> None:
    wrong = ~torch.isfinite(values)
    if name in VOCABULARY_OUTPUTS:  # a token may be ruled out
        wrong &= values != -torch.inf
    wrong = (wrong | (values > MAX_LOGPROB) if is_logprob else wrong) & checked

    def error() -> LossbookError:
        at = wrong.nonzero()[0].tolist()
        row, position = call.where(at[0] if rows is None else int(rows[at[0]]))
        value = float(values[tuple(at)])
        which = f", candidate {at[1]}" if len(at) > 1 else ""
        return wrong_value(
            f"{part.name}: {name} of {call.layout.row} {row} is {value:g} at position {position}{which}", value
        )

    call.checks.add(wrong, error)


def _no_candidate(call: Call, part: Part, nothing: Tensor, width: int) -> Callable[[], LossbookError]:
    def error() -> LossbookError:
        row, position = call.where(int(nothing.nonzero()[0]))
        return NonFiniteLossInput(
            f"{part.name}: {part.spec.candidates} of {call.layout.row} {row} is -inf for all {width} candidates at position "
            f"{position}, where the mask is not 0. Give the position mask 0, or at least one candidate"
        )

    return error
