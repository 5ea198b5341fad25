"""`Plan`: memory, traffic and times of one setup, whether it fits, and what would."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .memory import Memory, Setup, largest_micro_batch, memory_of
from .shape import Shape
from .traffic import Speed, Times, Traffic, times_of, traffic_of

#: No more GPUs than this are proposed.
MOST_RANKS = 2**14
#: Micro-batches smaller than this (tokens) are not proposed: most of the time would go into communication.
LEAST_TOKENS = 1024


@dataclass(frozen=True)
class Plan:
    """What training takes.

    limit    bytes of a GPU that may be filled
    largest  most tokens of a micro-batch that fit; 0 where not one does
    context  tokens that a token attends to, on average
    remedies  changes that would make it fit, each with the bytes that a rank then takes
    """

    shape: Shape
    setup: Setup
    speed: Speed
    limit: int
    context: float
    memory: Memory
    traffic: Traffic
    times: Times
    largest: int
    remedies: tuple[tuple[str, int], ...]

    @property
    def fits(self) -> bool:
        """Whether training takes no more than the limit."""
        return self.memory.training <= self.limit

    @property
    def can_sample(self) -> bool:
        """Whether each rank can hold all weights beside what it holds at rest."""
        return self.memory.sampling <= self.limit

    @property
    def sampled_tokens(self) -> int:
        """How many tokens' keys and values fit beside the weights while a rank samples."""
        return max(0, self.limit - self.memory.sampling) // max(1, self.shape.cached)


def plan_for(shape: Shape, setup: Setup, speed: Speed, limit: int, *, length: int) -> Plan:
    """The plan of a setup. limit: bytes. length: tokens of a usual sequence, half of which a token attends to on average."""
    memory = memory_of(shape, setup)
    return Plan(
        shape=shape,
        setup=setup,
        speed=speed,
        limit=limit,
        context=length / 2,
        memory=memory,
        traffic=traffic_of(shape, setup),
        times=times_of(shape, setup, speed, length / 2),
        largest=largest_micro_batch(shape, setup, limit),
        remedies=() if memory.training <= limit else tuple(_remedies(shape, setup, limit)),
    )


def _remedies(shape: Shape, setup: Setup, limit: int) -> Iterator[tuple[str, int]]:
    """Changes after which training fits: of the micro-batch, of the number of GPUs, of what is trained."""
    ways = [setup] if setup.checkpoint_layers else [setup, replace(setup, checkpoint_layers=True)]
    for way in ways:
        tokens = min(setup.tokens, largest_micro_batch(shape, way, limit))
        if tokens >= min(LEAST_TOKENS, setup.tokens):
            flags = {"--checkpoint-layers": way != setup, f"--tokens-per-micro-batch {tokens}": tokens < setup.tokens}
            fitting = replace(way, tokens=tokens)
            yield " ".join(flag for flag, is_new in flags.items() if is_new), memory_of(shape, fitting).training
    for way in ways:
        fitting = _more_ranks(shape, way, limit)
        if fitting is not None:
            flag = " --checkpoint-layers" if way != setup else ""
            yield f"--gpus {fitting.ranks}{flag}", memory_of(shape, fitting).training
    if shape.trains_all:
        yield "LoRA adapters: leave out --all-weights", 0


def _more_ranks(shape: Shape, setup: Setup, limit: int) -> Setup | None:
    """The setup with its ranks doubled as often as need be."""
    if setup.four_bit:
        return None
    while setup.ranks < MOST_RANKS:
        setup = replace(setup, ranks=2 * setup.ranks)
        if memory_of(shape, setup).training <= limit:
            return setup
    return None
