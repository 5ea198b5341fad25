"""What the server says about itself, for its status page: `GET /api/status` answers with a `Status` as JSON.

It is of the owner who asks: models, samplers, errors and queues of other keys are not in it; memory and throughput are the
whole server's. Times are seconds since 1970, sizes are bytes. Numbers are finite, or None where nothing is known.
"""

from __future__ import annotations

from typing import Literal, TypedDict

#: Seconds that rates are means over, the latest ones.
RATE_SECONDS = 60.0
#: The most points of a loss curve, and the most errors, the latest ones.
MAX_POINTS, MAX_ERRORS = 300, 50

ServerState = Literal["running", "draining", "failed"]
ModelState = Literal["loading", "in memory", "parked", "lost", "failed"]


class Queues(TypedDict):
    """Requests by what they do now: those that wait for their turn, those that run, and finished ones not fetched yet."""

    waiting: int
    running: int
    unfetched: int


class Throughput(TypedDict):
    """Means over the last RATE_SECONDS: trained tokens, sampled tokens, samples and finished requests per second."""

    trained_tokens: float
    sampled_tokens: float
    samples: float
    requests: float


class Memory(TypedDict):
    """Resident bytes of the process, and bytes in use and in all on the accelerator; None without one."""

    resident: int
    device_used: int | None
    device_total: int | None


class LossCurve(TypedDict):
    """Losses of a model's `forward_backward` calls that an optimizer step followed, the latest MAX_POINTS.

    points  (step, loss), steps ascending; None for a loss that is not finite
    """

    loss_fn: str
    points: list[tuple[int, float | None]]


class ModelStatus(TypedDict):
    """A model in training.

    base_model   as the client named it. lora_rank: None where all weights are trained
    steps        optimizer steps so far
    waiting      requests in its queue. running: what runs of it now, "forward_backward" or so
    last_request when it was last asked something. bytes: of its own weights, gradients and moments, without what it shares
    curves       one for each loss function
    """

    model_id: str
    base_model: str
    lora_rank: int | None
    state: ModelState
    steps: int
    waiting: int
    running: str | None
    last_request: float
    tokens_per_second: float
    bytes: int | None
    curves: list[LossCurve]


class SamplerStatus(TypedDict):
    """Weights that are sampled from. path: of the checkpoint; None for a base model, and for weights without a name."""

    sampler_id: str
    base_model: str
    path: str | None
    waiting: int
    tokens_per_second: float


class RecentError(TypedDict):
    """A request that failed, or that was refused. where: of which model, sampler or session. kind: what was asked."""

    time: float
    where: str | None
    kind: str
    category: Literal["user", "server"]
    message: str


class Status(TypedDict):
    """All of it. errors: the latest first, MAX_ERRORS at most."""

    version: str
    state: ServerState
    time: float
    started: float
    device: str
    sessions: int
    queues: Queues
    throughput: Throughput
    memory: Memory
    models: list[ModelStatus]
    samplers: list[SamplerStatus]
    errors: list[RecentError]
