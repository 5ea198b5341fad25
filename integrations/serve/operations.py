"""What a client asks a model, a sampler or a session to do, after it was read and before it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .refusals import Counter

OperationKind = Literal[
    "create_model",
    "get_info",
    "forward_backward",
    "forward",
    "optim_step",
    "save_weights",
    "save_weights_for_sampler",
    "save_weights_external",
    "load_weights",
    "create_custom_loss",
    "sample",
]
#: What an answer is written in.
PROTOBUF, JSON = "application/x-protobuf", "application/json"


@dataclass(frozen=True)
class Operation:
    """One request that gets a promise.

    owner      whose it is: what a key stands for
    scope      what its number counts in: a model id, a session id, or a sampling session's id
    number     the client's seq_id, model_seq_id or custom_loss_seq_id in that scope; unique with scope and counter
    counter    which of the client's counters the number is of: "seq", "model", "loss" or "sample"
    body_hash  sha256 of the request in canonical form: a retry has the same
    payload    the request, read and checked; see `wire`
    """

    owner: str
    kind: OperationKind
    scope: str
    number: int
    counter: Counter
    body_hash: str
    payload: Any = field(repr=False)
    request_id: str = ""


@dataclass(frozen=True)
class Answer:
    """What a future holds in the end: bytes of a result, or why there is none.

    content_type  of `body`. error, category: of a failed one, whose body is empty
    """

    body: bytes = b""
    content_type: str = JSON
    error: str | None = None
    category: Literal["user", "server"] | None = None
