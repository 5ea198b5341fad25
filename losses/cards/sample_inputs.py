"""The smallest data that a loss can be given, made from its signature: for its card's metrics and curves."""

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
from ..spec.spec import Input

#: Where a quantity is not what is being looked at. A token of probability 0.22 leaves room on either side.
USUAL_LOGPROB = -1.5
USUAL_OUTPUTS = {"entropy": 2.0, "logsumexp": 10.0, "mean_logprobs": -10.0, "values": 0.0, "logprobs": USUAL_LOGPROB}
#: The teacher's two candidates, where a loss compares distributions.
USUAL_CANDIDATES = (0.7, 0.3)
EMBEDDING_WIDTH = 3
#: Numbers of datums that are tried with a loss that couples the whole batch, two pairs or a triplet first.
SIZES = (4, 3, 6, 8, 2, 1)

#: What a model says about some datums: by name, one tensor a datum.
OutputLists = dict[str, list[Tensor]]


def usable(given: Any, norm_length: int = 1) -> Loss | Mixture:
    """What `get_loss` gives; with `norm_length` where the loss's own reduction cannot do without.

    Raises what `get_loss` raises.
    """
    try:
        return get_loss(given)
    except LossConfigError as error:
        if "norm_length" not in str(error):
            raise
        return get_loss(given, norm_length=norm_length)


def partners(loss: Loss, count: int) -> list[list[int]]:
    """Groups of datums that belong together: pairs, or the like places of both halves of a coupled batch."""
    if (members := loss.spec.members(count, loss.config)) is not None:
        return members
    if loss.spec.per == "pair" or loss.spec.couples != "batch":
        return [list(range(i, min(i + 2, count))) for i in range(0, count, 2)]
    return [[i, i + count // 2] for i in range(count // 2)]


def is_flag(wanted: Input) -> bool:
    """Whether an input is 1 or 0, as declared or by its name."""
    return wanted.kind == "flag"


def usual_value(wanted: Input) -> float:
    """A number that an input may hold, by its name: policies agree, values are 0, advantages and flags 1."""
    name = wanted.name
    if wanted.kind == "logprob":
        return USUAL_LOGPROB
    if name == "advantages" or name.endswith("threshold") or is_flag(wanted):
        return 1.0
    return 0.5 if wanted.kind == "prob" else 0.0


def wanted_inputs(loss: Loss) -> list[Input]:
    """The inputs that its settings make it need; optional ones are left out."""
    needed = {key for key, setting in loss.spec.required_if.items() if loss.settings.get(setting)}
    return [one for one in loss.spec.inputs if one.required or one.name in needed]


def datums(loss: Loss, count: int, inputs: Mapping[str, Any] | None = None) -> list[Datum]:
    """Datums of one token (of two candidates), all alike but for `inputs`: {name: one value, or a list with one a datum}."""
    found: list[Datum] = []
    for i in range(count):
        carried: dict[str, Any] = {}
        if loss.spec.reads_tokens:
            carried = {"target_tokens": [[0, 1]] if loss.spec.candidates else [0], "weights": [1.0]}
        for one in wanted_inputs(loss):
            given = (inputs or {}).get(one.name, usual_value(one))
            value = given[i] if isinstance(given, list) else given
            wide = one.name == loss.spec.candidates
            carried[one.name] = (
                torch.tensor([USUAL_CANDIDATES]).log() if wide else [value] if one.per == "token" else value
            )
        found.append(Datum(ModelInput.from_ints([0]), carried))
    return found


def outputs(loss: Loss, count: int) -> OutputLists:
    """What an undecided model says about such datums, float64."""
    found: OutputLists = {}
    for name in loss.outputs:
        if name == "embeddings":
            found[name] = [torch.eye(EMBEDDING_WIDTH, dtype=torch.float64)[i % 2] for i in range(count)]
        elif name == "logprobs" and loss.spec.candidates:
            found[name] = [torch.full((1, 2), 0.5, dtype=torch.float64).log() for _ in range(count)]
        else:
            found[name] = [torch.tensor([USUAL_OUTPUTS[name]], dtype=torch.float64) for _ in range(count)]
    return found


def sizes(loss: Loss) -> Iterator[int]:
    """Numbers of datums worth trying, the likeliest first."""
    if loss.spec.couples == "batch":
        yield from (n for n in SIZES if loss.spec.per != "pair" or n % 2 == 0)
    else:
        yield 2 if loss.spec.per == "pair" else 1


def first_that_works(loss: Loss, attempt: Callable[[int], Any]) -> Any:
    """`attempt(count)` for the first number of datums that the loss takes; None where it takes none of those tried."""
    for count in sizes(loss):
        try:
            return attempt(count)
        except Exception:  # a loss may refuse data in any way it likes
            continue
    return None


def metric_kinds(loss: Loss) -> dict[str, str]:
    """{metric: "mean", "sum", "min" or "max"}: from a call on no datums, or on the fewest that it takes."""
    if loss.spec.is_batch_style:
        return {}
    if loss.spec.couples != "batch":
        shape = {"embeddings": (0, EMBEDDING_WIDTH), "logprobs": (0, 1) if loss.spec.candidates else (0,)}
        nothing: dict[str, Any] = {name: torch.zeros(shape.get(name, (0,))) for name in loss.outputs}
        try:
            return _kinds(loss, [], Outputs(**nothing))
        except Exception:  # a loss of the user's may need a datum at least
            pass
    return first_that_works(loss, lambda n: _kinds(loss, datums(loss, n), outputs(loss, n))) or {}


def _kinds(loss: Loss, data: Sequence[Datum], given: Any) -> dict[str, str]:
    _, found = loss.terms(data, given)
    return {name: stat.kind for name, stat in found.items()}


def evenly(start: float, stop: float, count: int) -> list[float]:
    """`count` numbers from start to stop, rounded so that 0 is 0."""
    return [round(start + (stop - start) * i / (count - 1), 9) for i in range(count)]
