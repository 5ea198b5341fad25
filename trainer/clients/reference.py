"""`ReferenceClient`: frozen weights, forward passes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ...datums.display import one_line
from ...datums.errors import ModelError
from ...datums.keywords import explained_class
from ...datums.types import own_datums
from ..engine.checks import Pooling, check_pooling
from ..responses import ForwardBackwardOutput, TopLogprobs
from ..training.protocol import Frozen
from .awaitable import AwaitableClient, queued
from .context import LossFunction, loss_and_top_k
from .futures import Calls, Future, Worker

T = TypeVar("T")


@explained_class
class ReferenceClient(AwaitableClient):
    """Frozen weights for `forward` only: reference logprobs for DPO, KL terms and distillation."""

    def __init__(self, worker: Worker, frozen: Frozen, name: str) -> None:
        self._frozen = frozen
        self._calls = Calls(name, worker)

    def __repr__(self) -> str:
        return one_line(f"<ReferenceClient {self._calls.name}>")

    def forward(
        self,
        data: Sequence[Any],
        loss_fn: LossFunction = "cross_entropy",
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        pooling: Pooling = "mean",
        top_k: int | None = None,
    ) -> Future[ForwardBackwardOutput]:
        """As `TrainingClient.forward`, under the frozen weights."""
        check_pooling(pooling)
        datums, (loss, k) = own_datums(data), loss_and_top_k(loss_fn, loss_fn_config, top_k)
        return self._calls.submit("forward", lambda: self._frozen.forward(datums, loss, pooling, k))

    def top_logprobs(self, data: Sequence[Any], k: int) -> Future[list[TopLogprobs]]:
        """A teacher's k likeliest next tokens and their logprobs at every position whose weight is not 0.

        k up to the size of the vocabulary, which gives the whole distribution. Raises ShapeError for another k.
        """
        datums = own_datums(data)
        return self._calls.submit("top_logprobs", lambda: self._frozen.top_logprobs(datums, k))

    def lent(self, worker: Worker, call: Callable[[Frozen], T]) -> Callable[[], T]:
        """A call that reads these weights, as a teacher's, to run on another client's `worker`.

        Where they have a worker of their own, the whole call runs there while that one waits, so that no other call of either
        runs meanwhile.
        """
        if self._calls.worker is worker:
            return lambda: call(self._frozen)
        return lambda: self._calls.submit("teach", lambda: call(self._frozen)).result()

    @property
    def vocab_size(self) -> int:
        """Rows of the output head, which may be more than the tokenizer has tokens."""
        return self._frozen.vocab_size

    def fingerprint(self) -> Future[str]:
        """A short text, equal for equal weights under any model name; see `weights_fingerprint`."""
        return self._calls.submit("fingerprint", self._frozen.fingerprint)

    forward_async = queued(forward)
    top_logprobs_async = queued(top_logprobs)
    fingerprint_async = queued(fingerprint)

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self._frozen.tokenizer


def beside(teacher: Any, worker: Worker, call: Callable[[Frozen | None], T]) -> Callable[[], T]:
    """`call` with the teacher's weights, to run on `worker`. Raises ModelError for what is no `ReferenceClient`."""
    if teacher is None:
        return lambda: call(None)
    if not isinstance(teacher, ReferenceClient):
        raise ModelError(
            f"teacher is a {type(teacher).__name__}: give what create_reference_client returns, frozen weights in this process"
        )
    return teacher.lent(worker, call)
