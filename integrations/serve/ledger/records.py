"""What the ledger gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ..operations import Answer

#: Where a model is: in this process, on the disk, gone with a process that died, or freed with its session.
ModelState = Literal["memory", "parked", "lost", "ended"]


@dataclass(frozen=True)
class Submission:
    """What became of a request that was handed in.

    request_id  of the promise: the first one's, however often the request is sent
    is_new      whether it is to be queued: true once for each request
    answer      of a request that is done; None while it is not, and when its result has expired
    """

    request_id: str
    is_new: bool
    answer: Answer | None = None


@dataclass(frozen=True)
class SessionRecord:
    """A session. heartbeat, ended: seconds of the ledger's clock."""

    owner: str
    session_id: str
    facts: dict[str, Any] = field(repr=False)
    made: float
    heartbeat: float
    ended: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ModelRecord:
    """A model in training.

    executed_seq                 number of the last request that changed it
    durable_seq, durable_path    the state that it comes back from: after which request, and where; None: as it was made
    checkpoint, checkpoint_seq   the last checkpoint that its owner can load, and after which request it was saved
    dirty                        whether it has gradients that no step has used; they are in memory only
    """

    owner: str
    model_id: str
    session_id: str
    facts: dict[str, Any] = field(repr=False)
    made: float
    state: ModelState = "memory"
    executed_seq: int = 0
    durable_seq: int = 0
    durable_path: str | None = None
    checkpoint: str | None = None
    checkpoint_seq: int = 0
    dirty: bool = False

    @property
    def problem(self) -> str | None:
        """Why requests to a lost model fail, for its owner; None for others."""
        if self.state != "lost":
            return None
        if self.checkpoint is None:
            last = "It has no checkpoint: create it again"
        else:
            last = f"Its last checkpoint is {self.checkpoint} (request {self.checkpoint_seq}): create a training client from it"
        return f"model {self.model_id} was lost after request {self.executed_seq}, when the server stopped. {last}"


class ModelChanges(TypedDict, total=False):
    """Fields of a model that change while it is trained; see ModelRecord."""

    state: ModelState
    executed_seq: int
    durable_seq: int
    durable_path: str | None
    checkpoint: str | None
    checkpoint_seq: int
    dirty: bool


@dataclass(frozen=True)
class SamplerRecord:
    """Weights that are sampled from. in_memory: they are nowhere else. lost: they were, and that process died."""

    owner: str
    sampler_id: str
    session_id: str
    facts: dict[str, Any] = field(repr=False)
    made: float
    in_memory: bool = False
    lost: bool = False


@dataclass(frozen=True)
class LossRecord:
    """A loss that a client made."""

    owner: str
    loss_id: str
    session_id: str
    facts: dict[str, Any] = field(repr=False)
    made: float


@dataclass(frozen=True)
class Recovered:
    """What was left by a process that died, or was stopped.

    failed    ids of requests that waited or ran; their futures fail
    lost      models whose last changes were in memory alone
    parked    models that come back from the disk, or as they were made
    samplers  those whose weights were in memory alone; they are lost
    """

    failed: tuple[str, ...] = ()
    lost: tuple[ModelRecord, ...] = ()
    parked: tuple[ModelRecord, ...] = ()
    samplers: tuple[SamplerRecord, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """How many results expired, and how many old requests were forgotten."""

    expired: int = 0
    forgotten: int = 0
