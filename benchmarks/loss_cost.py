"""The cost of everything around the model: `python benchmarks/loss_cost.py`.

Microseconds per datum of about 50 tokens: packing with all checks, the loss's function over packed tensors (forward and
backward), and the same loss as a Python loop over a list of datums, as custom losses for hosted APIs are written. Also the
time that the engine plans a call before its first forward. The aims: packed below 10 us per datum, linear in datums, and
10,000 datums planned in less than 1 s. Before timing, all ways must give the same loss and gradient.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.modules.module import register_module_forward_pre_hook

import lossbook as lb
from lossbook.losses import Outputs, safe_ratio

SIZES = (100, 1_000, 10_000)
LENGTHS = (30, 71)
LOSSES = ("cross_entropy", "ppo", "dpo")


# --- the same losses as loops over datums -----------------------------------------------------------------------------


def cross_entropy_loop(data: Sequence[lb.Datum], logprobs_list: Sequence[Tensor]) -> Tensor:
    """Sum of -w logprobs."""
    total = torch.zeros(())
    for datum, logprobs in zip(data, logprobs_list, strict=True):
        weights = datum.loss_fn_inputs["weights"].to_torch()
        total = total - (weights * logprobs).sum()
    return total


def ppo_loop(data: Sequence[lb.Datum], logprobs_list: Sequence[Tensor]) -> Tensor:
    """Sum of w times the clipped policy gradient."""
    total = torch.zeros(())
    for datum, logprobs in zip(data, logprobs_list, strict=True):
        weights, sampled, advantages = (
            datum.loss_fn_inputs[key].to_torch() for key in ("weights", "sampling_logprobs", "advantages")
        )
        ratio = safe_ratio(logprobs, sampled)
        losses = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        total = total + (weights * losses).sum()
    return total


def dpo_loop(data: Sequence[lb.Datum], logprobs_list: Sequence[Tensor]) -> Tensor:
    """Mean over pairs of -log sigmoid of the margin."""
    total = torch.zeros(())
    for i in range(0, len(data), 2):
        sums = []
        for datum, logprobs in zip(data[i : i + 2], logprobs_list[i : i + 2], strict=True):
            weights, reference = (datum.loss_fn_inputs[key].to_torch() for key in ("weights", "ref_logprobs"))
            sums.append((weights * (logprobs - reference)).sum())
        total = total - logsigmoid(0.1 * (sums[0] - sums[1]))
    return total / (len(data) / 2)


LOOPS: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy_loop,
    "ppo": ppo_loop,
    "dpo": dpo_loop,
}


# --- data -------------------------------------------------------------------------------------------------------------


def make_datums(count: int) -> list[lb.Datum]:
    """`count` datums of 30 to 70 tokens, the first quarter of each without weight, with all that a loss reads."""
    generator = torch.Generator().manual_seed(0)
    datums = []
    for _ in range(count):
        length = int(torch.randint(*LENGTHS, (1,), generator=generator))
        near = [-1 + 0.1 * torch.randn(length, generator=generator) for _ in range(2)]
        tokens = torch.randint(0, 256, (length + 1,), generator=generator)
        inputs = {
            "target_tokens": tokens[1:],
            "weights": (torch.arange(length) >= length // 4).float(),
            "sampling_logprobs": near[0],
            "ref_logprobs": near[1],
            "advantages": torch.randn(length, generator=generator),
        }
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


# --- ways -------------------------------------------------------------------------------------------------------------


def ways(name: str, datums: Sequence[lb.Datum]) -> dict[str, Callable[[], Any]]:
    """The packing, the packed loss, both together, and the loop; those with a loss return (loss, gradient)."""
    loss = lb.get_loss(name)
    lengths = [len(datum.loss_fn_inputs["target_tokens"]) for datum in datums]
    logprobs = -1 + 0.1 * torch.randn(sum(lengths), generator=torch.Generator().manual_seed(1))
    bound = loss.prepare(datums)

    def packed_loss(ready: Any) -> tuple[Tensor, Tensor]:
        leaf = logprobs.clone().requires_grad_()
        total, _ = ready.terms(Outputs(logprobs=leaf))
        value = total / ready.count
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    def loop() -> tuple[Tensor, Tensor]:
        leaf = logprobs.clone().requires_grad_()
        value = LOOPS[name](datums, leaf.split(lengths))
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    return {
        "packing": lambda: loss.prepare(datums),
        "function": lambda: packed_loss(bound),
        "both": lambda: packed_loss(loss.prepare(datums)),
        "loop": loop,
    }


def check_same(calls: dict[str, Callable[[], Any]]) -> None:
    """Raise AssertionError unless the packed loss and the loop give one value and one gradient."""
    packed, looped = calls["both"](), calls["loop"]()
    for a, b in zip(packed, looped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class _FirstForward(Exception):
    """Raised before the model runs for the first time."""


def planning_seconds(datums: Sequence[lb.Datum], name: str, rounds: int) -> float:
    """Median seconds from the call of `forward_backward` to the first forward."""
    training = lb.ServiceClient(device="cpu").create_training_client("tiny")

    def stop(*arguments: Any) -> Any:
        raise _FirstForward

    def plan() -> None:
        try:
            training.forward_backward(datums, name).result()
        except _FirstForward:
            return
        raise AssertionError("the engine never ran its model")

    with register_module_forward_pre_hook(stop):
        return statistics.median(measuring.interleaved({"plan": plan}, rounds)["plan"])


def row(name: str, count: int, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    datums = make_datums(count)
    calls = ways(name, datums)
    check_same(calls)
    times = measuring.interleaved(calls, rounds)
    each = {f"{label}, us a datum": 1e6 * statistics.median(values) / count for label, values in times.items()}
    return {
        "loss": name,
        "datums": count,
        "tokens": sum(datum.model_input.length for datum in datums),
        **each,
        "loop / both": measuring.ratio(times, "loop", "both"),
        "planning, s": planning_seconds(datums, name, rounds),
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="what is measured runs on the CPU")
    parser.add_argument("--quick", action="store_true", help="few datums, one round")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    rows = [row(name, count, rounds) for name in LOSSES for count in ((10, 100) if options.quick else SIZES)]
    print(measuring.markdown(rows))
    measuring.write("loss_cost", rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
