"""Where a model's outputs come from: logits, or hidden states and a head.

That arithmetic is the trainer's, which lies above losses, so that lossbook hands it over (`datums/lazy.py`), to be loaded when it is
first used.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from torch import Tensor

from ....datums.errors import LossContractError
from ....datums.lazy import handed
from ...batch.vocabulary import Distributions
from ...spec.top import TOP_OUTPUTS
from ...spec.vocabulary import STUDENT

#: Under which name lossbook hands it over.
SOURCES = "sources"
#: Outputs that are made of logits.
HEAD_OUTPUTS = ("logprobs", "entropy", "logsumexp", "mean_logprobs", *TOP_OUTPUTS, STUDENT)


class Source(Protocol):
    """Positions of which outputs are made."""

    @property
    def given(self) -> Tensor:
        """What was given per position."""
        ...

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        ...

    def outputs(self, rows: Tensor | None, targets: Tensor, names: Collection[str], top_k: int) -> dict[str, Any]:
        """The outputs `names` at `rows` (None: all) of the positions; targets: at these rows. top_k: of the likeliest tokens."""
        ...

    def whole(self, rows: Tensor | None) -> Distributions:
        """The distributions over the whole vocabulary there."""
        ...


class Sources(Protocol):
    """The two ways to make one."""

    def of_logits(self, logits: Tensor, temperature: float) -> Source:
        """logits [positions, V]."""
        ...

    def of_hidden(self, hidden: Tensor, head: Any, temperature: float) -> Source:
        """hidden [positions, d]; head: a weight [V, d], a linear layer, a model, or the trainer's `Head`."""
        ...


def sources() -> Sources:
    """The arithmetic. Raises LossContractError where nobody handed it over."""
    try:
        return handed(SOURCES)
    except KeyError:
        raise LossContractError("on_logits and on_hidden need lossbook's trainer: import lossbook") from None
