"""Which losses can be taken to the tinker service, and how."""

from __future__ import annotations

from lossbook.losses import Loss

from ..losses.cases import shipped, with_needed

#: Losses of one datum's logprobs that have no graph all the same, and a word of the reason.
NOT_TRACEABLE: dict[str, str] = {"fipo": "seqs.index has no form for one datum"}


def losses(**config: str) -> list[Loss]:
    """Every loss that ships, with the settings that it needs."""
    return [with_needed(name, **config) for name in shipped()]


def reads_logprobs_only(loss: Loss) -> bool:
    """Whether it can be the function of the SDK's forward_backward_custom, which hands out logprobs and nothing else."""
    return loss.outputs == ("logprobs",)


def is_of_one_datum(loss: Loss) -> bool:
    """Whether it can be traced, unless its code prevents it: the service calls it with one datum at a time."""
    spec = loss.spec
    return reads_logprobs_only(loss) and spec.couples in ("token", "datum") and not spec.is_batch_style


def by_portability() -> dict[str, list[str]]:
    """Ids by how they get to the service."""
    ways: dict[str, list[str]] = {
        'as a custom function, and as a graph with `reduction="sum"`': [],
        "as a custom function": [],
        "not, for they read another output of the model than logprobs": [],
    }
    graph, function, neither = ways.values()
    for loss in losses():
        is_traceable = is_of_one_datum(loss) and loss.name not in NOT_TRACEABLE
        (graph if is_traceable else function if reads_logprobs_only(loss) else neither).append(loss.name)
    return ways
