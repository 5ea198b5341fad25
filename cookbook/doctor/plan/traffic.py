"""What ranks send each other for a micro-batch, how long it takes, and what share of the time is spent computing."""

from __future__ import annotations

from dataclasses import dataclass

from .memory import FLOAT32, Setup
from .shape import Shape


@dataclass(frozen=True)
class Traffic:
    """Collectives of one micro-batch on one rank, and the bytes that it takes in for them.

    A micro-batch gathers each layer's weights for its forward and again for its backward, and the rest once; where all
    weights are trained, each gradient is then summed over the ranks, and each rank keeps its shard of it. Checkpointing changes
    no number. With adapters their gradients are summed once a call.

    gathers, gathered_bytes    all-gathers
    scatters, scattered_bytes  reduce-scatters
    call_bytes                 of the all-reduce of adapters, once a call
    """

    gathers: int
    gathered_bytes: int
    scatters: int
    scattered_bytes: int
    call_bytes: int

    @property
    def bytes(self) -> int:
        """Of a micro-batch."""
        return self.gathered_bytes + self.scattered_bytes


def traffic_of(shape: Shape, setup: Setup) -> Traffic:
    """What a micro-batch sends. A rank has one part of `ranks` already, and takes in the others."""
    if setup.ranks == 1:
        return Traffic(0, 0, 0, 0, 0)
    others = (setup.ranks - 1) / setup.ranks
    layers = len(shape.layers)
    in_layers = shape.sharded - shape.root.numbers
    gathered = shape.weight_bytes * (2 * in_layers + shape.root.numbers)
    scattered = FLOAT32 * shape.sharded if shape.trains_all else 0
    return Traffic(
        gathers=2 * layers + 1,
        gathered_bytes=round(gathered * others),
        scatters=layers + 1 if shape.trains_all else 0,
        scattered_bytes=round(scattered * others),
        call_bytes=round(2 * FLOAT32 * shape.adapters * others),
    )


def operations(shape: Shape, setup: Setup, context: float) -> float:
    """Floating-point operations for each token of a micro-batch, forward and backward.

    context: how many tokens a token attends to, on average. A product with a weight is 2 operations, once in the forward, once
    for the gradient of its input, once for its own where it is trained; attention takes twice in the backward what it takes in
    the forward. With checkpointing the layers' forward runs twice.
    """
    vocabulary, width = shape.head
    attention = 4.0 * context * shape.queried * len(shape.layers)
    weights, head, adapters = 2.0 * shape.multiplied, 2.0 * vocabulary * width, 2.0 * shape.adapters
    forward = weights + attention + head + adapters
    backward = (weights + head) * (2 if shape.trains_all else 1) + 2 * attention + 2 * adapters
    again = weights + attention + adapters if setup.checkpoint_layers else 0.0
    return forward + backward + again


@dataclass(frozen=True)
class Speed:
    """What a rank computes and takes in per second.

    flops      operations per second that it reaches
    bandwidth  bytes per second that it takes in during a collective over all ranks
    latency    seconds that any collective takes beside
    """

    flops: float
    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Times:
    """Seconds of one micro-batch on one rank.

    compute   forward and backward
    exchange  its collectives
    exposed   what no computation hides: the first gathers of the forward and the last sum of the backward, and what takes
              longer than all computation
    """

    compute: float
    exchange: float
    exposed: float

    @property
    def efficiency(self) -> float:
        """Tokens per second of a GPU, against one that holds all and waits for none; where transfers run beside products."""
        return self.compute / (self.compute + self.exposed)

    @property
    def efficiency_alone(self) -> float:
        """The same where nothing runs beside: the least to expect."""
        return self.compute / (self.compute + self.exchange)


def times_of(shape: Shape, setup: Setup, speed: Speed, context: float) -> Times:
    """Seconds of a micro-batch of `setup.tokens` tokens."""
    traffic = traffic_of(shape, setup)
    compute = setup.tokens * operations(shape, setup, context) / speed.flops
    exchange = traffic.bytes / speed.bandwidth + (traffic.gathers + traffic.scatters) * speed.latency
    if not traffic.gathers:
        return Times(compute, 0.0, 0.0)
    others = (setup.ranks - 1) / setup.ranks
    first = shape.weight_bytes * (shape.root.numbers + shape.layers[0].numbers)
    last = FLOAT32 * shape.root.numbers if shape.trains_all else 0
    ends = (first + last) * others / speed.bandwidth + 3 * speed.latency
    return Times(compute, exchange, max(ends, exchange - compute))
