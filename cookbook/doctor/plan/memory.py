"""Bytes that one rank takes, part by part, from a model's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ....trainer.head.logprobs import HEAD_MEMORY, TILE_BYTES
from .shape import FOUR_BIT, Shape

#: Bytes of a number that is trained: a weight, its gradient, and each of AdamW's two moments.
FLOAT32 = 4
#: Layers whose weights are gathered at one time: the one that runs, and the next, which is on its way. As many wait with whole
#: gradients: the one that ran, and the one before it, which is being summed over the ranks.
PASSING_LAYERS = 2
#: Tiles of logits that the head works on at one time (`linear_logprobs`).
HEAD_TILES = 3
#: Gradients of activations beside them while a layer goes backward, as a share of what the layer keeps. Measured on one process.
BACKWARD_SHARE = 0.25
#: Micro-batches beyond this many tokens are not looked for.
MOST_TOKENS = 2**22


@dataclass(frozen=True)
class Setup:
    """How a model is trained.

    ranks              processes, one on each GPU, over which the weights are sharded
    tokens             most tokens of a micro-batch
    checkpoint_layers  layers keep their inputs and run again in the backward
    four_bit           the linear layers inside the layers are held in 4 bits; on one rank only
    on_gpu             whether the head takes the sizes of a GPU
    """

    ranks: int
    tokens: int = 16384
    checkpoint_layers: bool = False
    four_bit: bool = False
    on_gpu: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: of the one with most, where a division leaves a remainder.

    weights  its shard of the weights, and all adapters
    moments  AdamW's, of what it trains
    times    what a micro-batch takes beside these, by part, at the three times of which one takes most: when the head runs, when
             the backward begins, and when it ends
    whole    all weights, gathered to sample; 0 where each rank has them anyway
    """

    weights: int
    moments: int
    times: Mapping[str, Mapping[str, int]]
    whole: int

    @property
    def at_rest(self) -> int:
        """Between calls."""
        return self.weights + self.moments

    @property
    def fullest(self) -> str:
        """The time at which a micro-batch takes most."""
        return max(self.times, key=lambda time: sum(self.times[time].values()))

    @property
    def training(self) -> int:
        """At most, while a micro-batch is trained on."""
        return self.at_rest + sum(self.times[self.fullest].values())

    @property
    def sampling(self) -> int:
        """While it samples, without keys and values."""
        return self.at_rest + self.whole


def memory_of(shape: Shape, setup: Setup) -> Memory:
    """The bytes of a rank. Pure arithmetic; shapes and setups are taken as valid."""
    sharded = sum(group.of_rank(setup.ranks) for group in (shape.root, *shape.layers))
    trained = sharded if shape.trains_all else shape.adapters
    weights = sharded * shape.weight_bytes + FLOAT32 * shape.adapters
    if setup.four_bit:
        weights -= round(shape.linear * (shape.weight_bytes - FOUR_BIT))
    gathered = shape.weight_bytes * _passing(shape, shape.root.numbers) if setup.ranks > 1 else 0
    activations = _activations(shape, setup)
    times = {
        time: {
            "gradients": 0 if shape.trains_all else FLOAT32 * trained,
            "gathered": gathered,
            "copies": copies,
            "activations": activations[time],
        }
        for time, copies in _copies(shape, setup).items()
    }
    times["the head runs"]["head"] = _head(shape, setup)
    if shape.trains_all:
        for time, parts in _gradients(shape, setup, FLOAT32 * trained).items():
            times[time] |= parts
    whole = shape.weight_bytes * shape.sharded if setup.ranks > 1 else 0
    return Memory(weights, 2 * FLOAT32 * trained, times, whole)


def largest_micro_batch(shape: Shape, setup: Setup, limit: int) -> int:
    """The most tokens of a micro-batch for which `limit` bytes suffice; 0 where not even one does."""
    least, most = 0, MOST_TOKENS
    while least < most:
        middle = (least + most + 1) // 2
        fits = memory_of(shape, replace(setup, tokens=middle)).training <= limit
        least, most = (middle, most) if fits else (least, middle - 1)
    return least


def _passing(shape: Shape, others: int) -> int:
    """Numbers of the layers that are whole at one time, with `others`; never more than there are."""
    return min(others + PASSING_LAYERS * shape.largest_layer, shape.sharded)


def _gradients(shape: Shape, setup: Setup, own: int) -> dict[str, dict[str, int]]:
    """Of weights that are all trained. The head's comes first, and waits for the embeddings', with which it is summed."""
    head = shape.head[0] * shape.head[1]
    if setup.ranks == 1:
        first = {"gradients": FLOAT32 * (head + shape.largest_layer)}
        return {
            "the head runs": {"gradients": FLOAT32 * head},
            "the backward begins": first,
            "it ends": {"gradients": own},
        }
    return {
        "the head runs": {"unsharded": FLOAT32 * head},
        "the backward begins": {"unsharded": FLOAT32 * _passing(shape, head)},
        "it ends": {"gradients": own, "unsharded": FLOAT32 * _passing(shape, shape.root.numbers)},
    }


def _copies(shape: Shape, setup: Setup) -> dict[str, int]:
    """Bytes of weights in a narrower dtype, by time; none where products are in the weights' own."""
    if shape.product_bytes == shape.weight_bytes:
        return {"the head runs": 0, "the backward begins": 0, "it ends": 0}
    head = shape.product_bytes * shape.head[0] * shape.head[1]
    if setup.ranks == 1:  # cast once a call
        return dict.fromkeys(
            ("the head runs", "the backward begins", "it ends"), shape.product_bytes * shape.linear + head
        )
    # Autocast casts in each forward, and the graph holds the copies; with checkpointing each layer's while it runs.
    layer = shape.one_layer.fixed
    kept = 0 if setup.checkpoint_layers else shape.kept.fixed
    return {"the head runs": kept + head, "the backward begins": max(kept, layer), "it ends": layer}


def _activations(shape: Shape, setup: Setup) -> dict[str, int]:
    """What a micro-batch's forward keeps, by time."""
    layer, kept = shape.one_layer.per_token, shape.kept.per_token
    inputs = min(shape.checkpointed.per_token, kept) if setup.checkpoint_layers else kept
    passing = BACKWARD_SHARE * layer
    at = {
        "the head runs": inputs,
        "the backward begins": min(inputs + layer, kept) + passing,
        "it ends": layer + passing,
    }
    return {time: round(setup.tokens * per_token) for time, per_token in at.items()}


def _head(shape: Shape, setup: Setup) -> int:
    """Logits that are kept and tiles of them, hidden states with their gradient, and a narrow gradient of the weight."""
    vocabulary, width = shape.head
    device = "other" if setup.on_gpu else "cpu"
    logits = min(setup.tokens * vocabulary * shape.product_bytes, HEAD_MEMORY[device])
    tiles = HEAD_TILES * min(TILE_BYTES[device], FLOAT32 * setup.tokens * vocabulary)
    states = 2 * setup.tokens * width * FLOAT32
    narrow = shape.product_bytes * vocabulary * width if shape.product_bytes != shape.weight_bytes else 0
    return logits + tiles + states + narrow
