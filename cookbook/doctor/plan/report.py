"""A plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from .plan import Plan

#: Parts of what a micro-batch takes, as the report names them.
PARTS = {
    "gradients": "gradients, its part",
    "gathered": "gathered weights",
    "unsharded": "gradients on their way",
    "copies": "narrow copies of weights",
    "activations": "activations",
    "head": "logits and head",
}


#: What to do where the weights cannot be gathered whole on each rank.
SAMPLE_ELSEWHERE = "sample from a server of completions"


def as_json(plan: Plan) -> dict[str, Any]:
    """Bytes, seconds, operations and tokens by name."""
    memory, times = plan.memory, plan.times
    return {
        "model": plan.shape.name,
        "parameters": plan.shape.sharded,
        "adapter_parameters": plan.shape.adapters,
        "layers": len(plan.shape.layers),
        "setup": asdict(plan.setup),
        "speed": asdict(plan.speed),
        "limit_bytes": plan.limit,
        "fits": plan.fits,
        "memory_bytes": {
            **{
                name: getattr(memory, name)
                for name in ("weights", "moments", "at_rest", "training", "whole", "sampling")
            },
            "times": {time: dict(parts) for time, parts in memory.times.items()},
            "fullest": memory.fullest,
        },
        "largest_micro_batch_tokens": plan.largest,
        "sampled_tokens_that_fit": plan.sampled_tokens,
        "traffic_of_a_micro_batch": {**asdict(plan.traffic), "bytes": plan.traffic.bytes},
        "seconds_of_a_micro_batch": asdict(times),
        "efficiency": times.efficiency,
        "efficiency_without_overlap": times.efficiency_alone,
        "remedies": [{"change": text, "training_bytes": size or None} for text, size in plan.remedies],
    }


def as_text(plan: Plan) -> str:
    """The plan in some thirty lines."""
    return "\n".join([*_head(plan), "", *_memory(plan), "", *_traffic(plan), "", *_verdict(plan)])


def _head(plan: Plan) -> Iterator[str]:
    shape, setup = plan.shape, plan.setup
    wide, narrow = ({2: "bfloat16", 4: "float32"}[size] for size in (shape.weight_bytes, shape.product_bytes))
    base = "4 bits" if setup.four_bit else wide
    how = (
        f"all weights trained in {wide}, products in {narrow}"
        if shape.trains_all
        else f"frozen weights in {base}, {shape.adapters / 1e6:,.1f} million of adapters in float32"
    )
    yield f"{shape.name}: {_billions(shape.sharded)} parameters in {len(shape.layers)} layers; {how}"
    again = ", layers run again in the backward" if setup.checkpoint_layers else ""
    yield f"{_count(setup.ranks, 'GPU')}, micro-batches of {setup.tokens:,} tokens{again}"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield f"memory of one GPU (GB), when {memory.fullest}"
    parts = {"weights, its part": memory.weights, "optimizer, its part": memory.moments}
    parts |= {PARTS[name]: size for name, size in memory.times[memory.fullest].items() if size}
    for text, size in parts.items():
        yield f"  {text:<34}{_gigabytes(size)}"
    yield f"  {'training, at most':<34}{_gigabytes(memory.training)}  of {plan.limit / 1e9:,.1f} that may be filled"
    largest = f"{plan.largest:,} tokens" if plan.largest else "none"
    yield f"  {'largest micro-batch that fits':<34}{largest:>9}"
    if plan.shape.head[0]:
        room = (
            f"beside it keys and values of {plan.sampled_tokens:,} tokens" if plan.can_sample else "more than there is"
        )
        yield f"  {'sampling, with whole weights':<34}{_gigabytes(memory.sampling)}  {room}"


def _traffic(plan: Plan) -> Iterator[str]:
    traffic, times = plan.traffic, plan.times
    yield "one micro-batch on each GPU"
    if traffic.gathers:
        yield f"  {traffic.gathers:>4} all-gathers of weights          {_gigabytes(traffic.gathered_bytes)} GB taken in"
    if traffic.scatters:
        yield f"  {traffic.scatters:>4} reduce-scatters of gradients    {_gigabytes(traffic.scattered_bytes)} GB"
    if traffic.call_bytes:
        yield f"  {1:>4} all-reduce of adapters a call   {_gigabytes(traffic.call_bytes)} GB"
    speed = f"{plan.speed.flops / 1e12:,.0f} TFLOPS"
    yield f"  {'computing':<36}{times.compute:>9.3f} s at {speed}, {2 * plan.context:,.0f} tokens a sequence"
    if traffic.gathers:
        yield f"  {'sending and receiving':<36}{times.exchange:>9.3f} s at {plan.speed.bandwidth / 1e9:,.0f} GB/s"


def _verdict(plan: Plan) -> Iterator[str]:
    times = plan.times
    if plan.traffic.gathers:
        least = f"{times.efficiency_alone:.2f} where nothing overlaps"
        yield f"expected efficiency {times.efficiency:.2f} of as many single GPUs; {least}"
    if plan.fits:
        yield "training fits" if plan.can_sample else f"training fits; sampling does not: {SAMPLE_ELSEWHERE}"
        return
    yield "training does not fit. What would change that:"
    for text, size in plan.remedies:
        yield f"  {text}" + (f"  ({size / 1e9:,.1f} GB)" if size else "")
    if not plan.remedies:
        yield "  larger GPUs, or a smaller model"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:>9,.3f}" if size < 1e8 else f"{size / 1e9:>9,.1f}"


def _billions(number: int) -> str:
    return f"{number / 1e9:,.1f} billion" if number >= 1e8 else f"{number / 1e6:,.3f} million"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
