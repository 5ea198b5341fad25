"""The smallest data that a loss accepts, made from its signature, for the metrics and curves of its card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...datums.errors import LossConfigError
from ...datums.types import Datum, ModelInput
from ..batch.outputs import Outputs
from ..loss.loss import Loss, Mixture
from ..registry import get_loss
from ..spec.layers import LAYER_EMBEDDINGS
from ..spec.spec import GROUP_KEY, Input
from ..spec.top import TOP_LOGPROBS, TOP_OUTPUTS, TOP_TOKENS
from ..spec.vocabulary import STUDENT, TOKEN_EMBEDDINGS, VOCABULARY_OUTPUTS

#: The values of quantities that stay fixed. A token of probability 0.22 leaves room on either side.
USUAL_LOGPROB = -1.5
USUAL_OUTPUTS = {"entropy": 2.0, "logsumexp": 10.0, "mean_logprobs": -10.0, "values": 0.0, "logprobs": USUAL_LOGPROB}
#: The teacher's two candidates, where a loss compares distributions.
USUAL_CANDIDATES = (0.7, 0.3)
EMBEDDING_WIDTH = 3
#: Batch sizes tried with a loss that couples the whole batch: two pairs or a triplet first.
SIZES = (4, 3, 6, 8, 2, 1)

#: Model outputs of a batch: by name, one tensor per datum.
OutputLists = dict[str, list[Tensor]]


def usable(given: Any, norm_length: int = 1) -> Loss | Mixture:
    """What `get_loss` returns, with `norm_length` if the loss's own reduction needs it.

    Raises what `get_loss` raises.
    """
    try:
        return get_loss(given)
    except LossConfigError as error:
        if "norm_length" not in str(error):
            raise
        return get_loss(given, norm_length=norm_length)


def groups(loss: Loss, count: int) -> list[list[int]]:
    """Datums that belong together: as declared, else pairs, or datum i of both halves of a coupled batch."""
    if (members := loss.spec.members(count, loss.config)) is not None:
        return members
    if loss.spec.per == "pair" or loss.spec.couples != "batch":
        return [list(range(i, min(i + 2, count))) for i in range(0, count, 2)]
    return [[i, i + count // 2] for i in range(count // 2)]


def usual_value(wanted: Input, index: int) -> float | list[float]:
    """A value that an input may hold: policies agree, values are 0, advantages, flags and thresholds 1, vectors alike.

    index: of the datum. Neighbours are of two classes, and of one group.
    """
    if wanted.is_id and wanted.name != GROUP_KEY:
        return float(index % 2)
    if wanted.is_vector:
        return [1.0, *[0.0] * (EMBEDDING_WIDTH - 1)]
    if wanted.kind == "logprob":
        return USUAL_LOGPROB
    if wanted.is_id:
        return 0
    if wanted.kind == "flag" or wanted.name in ("advantages", "clip_low_threshold", "clip_high_threshold"):
        return 1.0
    return 0.5 if wanted.kind == "prob" else 0.0


def wanted_inputs(loss: Loss) -> list[Input]:
    """The inputs that the loss needs under its settings, without optional ones."""
    needed = {key for key, setting in loss.spec.required_if.items() if loss.settings.get(setting)}
    return [one for one in loss.spec.inputs if one.required or one.name in needed]


def datums(loss: Loss, count: int, inputs: Mapping[str, Any] | None = None) -> list[Datum]:
    """Datums of one token (two candidates), alike except for `inputs`: {name: one value, or a list with one per datum}."""
    batch: list[Datum] = []
    for i in range(count):
        carried: dict[str, Any] = {}
        if loss.spec.reads_tokens:
            carried = {"target_tokens": [[0, 1]] if loss.spec.candidates else [0], "weights": [1.0]}
        for one in wanted_inputs(loss):
            given = (inputs or {}).get(one.name)
            value = usual_value(one, i) if given is None else given[i] if isinstance(given, list) else given
            wide = one.name == loss.spec.candidates
            carried[one.name] = (
                torch.tensor([USUAL_CANDIDATES], dtype=torch.float32, device="cpu").log()
                if wide
                else [value]
                if one.per == "token"
                else value
            )
        batch.append(Datum(ModelInput.from_ints([0]), carried))
    return batch


def outputs(loss: Loss, count: int) -> OutputLists:
    """float64 outputs of an undecided model for `count` such datums."""
    given: OutputLists = {}
    for name in loss.outputs:
        if name == "embeddings":
            given[name] = [torch.eye(EMBEDDING_WIDTH, dtype=torch.float64, device="cpu")[i % 2] for i in range(count)]
        elif name == "logprobs" and loss.spec.candidates:
            given[name] = [torch.full((1, 2), 0.5, dtype=torch.float64, device="cpu").log() for _ in range(count)]
        elif name == LAYER_EMBEDDINGS:
            eye = torch.eye(EMBEDDING_WIDTH, dtype=torch.float64, device="cpu")
            given[name] = [eye[i % 2].repeat(len(loss.layers), 1) for i in range(count)]
        elif name == TOKEN_EMBEDDINGS:
            given[name] = [
                torch.eye(EMBEDDING_WIDTH, dtype=torch.float64, device="cpu")[i % 2, None] for i in range(count)
            ]
        elif name == TOP_TOKENS:
            given[name] = [torch.arange(loss.top_k, device="cpu").reshape(1, -1) for _ in range(count)]
        elif name == TOP_LOGPROBS:  # half of all, in equal parts
            row = torch.full((1, loss.top_k), 0.5 / loss.top_k, dtype=torch.float64, device="cpu").log()
            given[name] = [row.clone() for _ in range(count)]
        elif name in VOCABULARY_OUTPUTS:
            of_two = (0.5, 0.5) if name == STUDENT else USUAL_CANDIDATES
            given[name] = [torch.tensor([of_two], dtype=torch.float64, device="cpu").log() for _ in range(count)]
        else:
            given[name] = [torch.tensor([USUAL_OUTPUTS[name]], dtype=torch.float64, device="cpu") for _ in range(count)]
    return given


def sizes(loss: Loss) -> Iterator[int]:
    """Batch sizes to try, the likeliest first."""
    if loss.spec.couples == "batch":
        yield from (n for n in SIZES if loss.spec.per != "pair" or n % 2 == 0)
    else:
        yield 2 if loss.spec.per == "pair" or loss.spec.couples == "group" else 1


def first_that_works(loss: Loss, attempt: Callable[[int], Any]) -> Any:
    """`attempt(count)` for the first batch size that the loss accepts; None if it accepts none of them."""
    for count in sizes(loss):
        try:
            return attempt(count)
        except Exception:  # a loss may raise anything for data it does not accept
            continue
    return None


def metric_kinds(loss: Loss) -> dict[str, str]:
    """{metric: "mean", "sum", "min" or "max"}, from a call without datums or with the fewest that it accepts."""
    if loss.spec.is_batch_style:
        return {}
    if loss.spec.couples != "batch":
        shape = {"embeddings": (0, EMBEDDING_WIDTH), "logprobs": (0, 1) if loss.spec.candidates else (0,)}
        shape |= {TOKEN_EMBEDDINGS: (0, EMBEDDING_WIDTH), **dict.fromkeys(VOCABULARY_OUTPUTS, (0, 2))}
        shape |= dict.fromkeys(TOP_OUTPUTS, (0, loss.top_k))
        shape[LAYER_EMBEDDINGS] = (0, len(loss.layers), EMBEDDING_WIDTH)
        empty: dict[str, Any] = {name: torch.zeros(shape.get(name, (0,))) for name in loss.outputs}
        empty |= {TOP_TOKENS: empty[TOP_TOKENS].long()} if TOP_TOKENS in empty else {}
        try:
            return _kinds(loss, [], Outputs(**empty))
        except Exception:  # a user's loss may need at least one datum
            pass
    return first_that_works(loss, lambda n: _kinds(loss, datums(loss, n), outputs(loss, n))) or {}


def _kinds(loss: Loss, data: Sequence[Datum], given: Any) -> dict[str, str]:
    _, metrics = loss.terms(data, given)
    return {name: stat.kind for name, stat in metrics.items()}


def evenly(start: float, stop: float, count: int) -> list[float]:
    """`count` numbers from start to stop, rounded so that 0 is exact."""
    return [round(start + (stop - start) * i / (count - 1), 9) for i in range(count)]
