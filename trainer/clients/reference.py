"""`ReferenceClient`: frozen weights, forward passes only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...datums.types import own_datums
from ...losses.registry import get_loss
from ..engine.checks import Pooling, check_pooling
from ..engine.engine import Engine
from ..model.fingerprint import weights_fingerprint
from ..model.snapshot import Snapshot
from ..responses import ForwardBackwardOutput, TopLogprobs
from .context import ClientContext, LossFunction
from .futures import Calls, Future


class ReferenceClient:
    """Frozen weights for `forward` only: reference logprobs for DPO, KL terms and distillation."""

    def __init__(self, context: ClientContext, snapshot: Snapshot, name: str) -> None:
        self._engine = Engine(snapshot.model, context.settings)
        self._snapshot = snapshot
        self._calls = Calls(name, context.worker)

    def forward(
        self,
        data: Sequence[Any],
        loss_fn: LossFunction = "cross_entropy",
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        pooling: Pooling = "mean",
    ) -> Future[ForwardBackwardOutput]:
        """As `TrainingClient.forward`, under the frozen weights."""
        check_pooling(pooling)
        datums, loss = own_datums(data), get_loss(loss_fn, **(loss_fn_config or {})).copied()

        def run() -> ForwardBackwardOutput:
            with self._snapshot.applied():
                return self._engine.forward(datums, loss, pooling)

        return self._calls.submit("forward", run)

    def top_logprobs(self, data: Sequence[Any], k: int) -> Future[list[TopLogprobs]]:
        """A teacher's k likeliest next tokens and their logprobs at every position whose weight is not 0.

        k up to the size of the vocabulary, which gives the whole distribution. Raises ShapeError for another k.
        """
        datums = own_datums(data)

        def run() -> list[TopLogprobs]:
            with self._snapshot.applied():
                return self._engine.top_logprobs(datums, k)

        return self._calls.submit("top_logprobs", run)

    @property
    def vocab_size(self) -> int:
        """Rows of the output head, which may be more than the tokenizer has tokens."""
        return self._snapshot.model.vocab_size

    def fingerprint(self) -> Future[str]:
        """A short text, equal for equal weights under any model name; see `weights_fingerprint`."""

        def run() -> str:
            with self._snapshot.applied():
                return weights_fingerprint(self._snapshot.model)

        return self._calls.submit("fingerprint", run)

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self._snapshot.model.tokenizer
