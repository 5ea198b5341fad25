"""The cost of a custom loss, compared with a built-in loss and with a custom loss in two passes, as hosted services do it.

    python benchmarks/custom_versus_builtin.py                      # the tiny model and a random Llama of 38M parameters
    python benchmarks/custom_versus_builtin.py --model smollm2      # or a directory, .gguf file or hub id
    python benchmarks/custom_versus_builtin.py --device cuda

For `cross_entropy` and `grpo`, one call is timed three ways on the same datums and weights:

* built-in: `forward_backward(datums, "grpo")`
* custom: `forward_backward_custom(datums, fn)`, the same maths as a function of datums and logprobs
* two passes: a forward without gradients for all logprobs, `fn` on them as leaves, and a second forward with a backward whose
  loss is linear in the logprobs, with d loss / d logprob as its weights

Before timing, all three must give the same gradient norm. The ways alternate within each round, in an order that rotates, so
that a slow spell of the machine affects all of them. Ratios are taken within a round; their median over rounds is reported
with quartiles. The aims: a median of custom / built-in of at most 1.03 and of two passes / custom of at least 1.3
on SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
import transformers
import workloads

import lossbook as lb
from lossbook.trainer.model.tiny import build_tiny_tokenizer

DEFAULT_MODELS = ("tiny", "random-llama-38m")
Way = measuring.Way


# --- the same maths as functions of datums and logprobs ---------------------------------------------------------------


def joined(data: Sequence[lb.Datum], key: str) -> torch.Tensor:
    """[T]: an input of all datums, concatenated."""
    return torch.cat([datum.loss_fn_inputs[key].to_torch() for datum in data])


def cross_entropy(data, logprobs_list):
    """-Σ w p."""
    loss = -torch.dot(joined(data, "weights"), torch.cat(logprobs_list))
    return loss, {"nats": loss.item()}


def grpo(data, logprobs_list):
    """Σ w (-min(r A, clip(r, 0.8, 1.2) A) + 0.001 k3) / Σ w, with k3 = exp(f - p) - (f - p) - 1."""
    logprobs, weights = torch.cat(logprobs_list), joined(data, "weights")
    advantages = joined(data, "advantages")
    ratio = (logprobs - joined(data, "sampling_logprobs")).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    difference = joined(data, "ref_logprobs") - logprobs
    kl = difference.exp() - difference - 1
    loss = (weights * (0.001 * kl - surrogate)).sum() / weights.sum()
    return loss, {"kl": kl.mean().item()}


LOSSES: dict[str, Callable[..., Any]] = {"cross_entropy": cross_entropy, "grpo": grpo}


def two_passes(training: lb.TrainingClient, datums: Sequence[lb.Datum], loss_fn: Callable[..., Any]) -> None:
    """A custom loss without keeping the graph of the forward: forward, loss on leaves, forward and backward of a surrogate."""
    outputs = training.forward(datums, "cross_entropy").result().loss_fn_outputs
    leaves = [output["logprobs"].to_torch().requires_grad_() for output in outputs]
    loss, _ = loss_fn(datums, leaves)
    loss.backward()
    surrogate = [
        lb.Datum(
            datum.model_input, {"target_tokens": datum.loss_fn_inputs["target_tokens"], "weights": -gradient_of(leaf)}
        )
        for datum, leaf in zip(datums, leaves, strict=True)
    ]
    training.forward_backward(surrogate, "cross_entropy").result()


def gradient_of(leaf: torch.Tensor) -> torch.Tensor:
    """A leaf's gradient; zeros if the loss does not depend on it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


# --- data -------------------------------------------------------------------------------------------------------------


def write_random_llama(folder: Path) -> Path:
    """The random Llama of 38M parameters with its tokenizer, written into a folder."""
    workloads.SHAPES["random-llama-38m"].build().save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return folder


def make_datums(count: int, length: int, label_fraction: float, vocabulary: int) -> list[lb.Datum]:
    """`count` sequences of about `length` tokens (half to one and a half), the last part of each with weight 1."""
    generator = torch.Generator().manual_seed(0)
    datums = []
    for i in range(count):
        own = length // 2 + (i * length) // max(count - 1, 1)
        tokens = torch.randint(0, vocabulary, (own + 1,), generator=generator)
        uniform = -float(torch.tensor(vocabulary).log())
        near = [uniform + 0.1 * torch.randn(own, generator=generator) for _ in range(2)]
        inputs = {
            "target_tokens": tokens[1:],
            "weights": (torch.arange(own) >= round(own * (1 - label_fraction))).float(),
            "sampling_logprobs": near[0],
            "ref_logprobs": near[1],
            "advantages": torch.randn(own, generator=generator),
        }
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


# --- measuring --------------------------------------------------------------------------------------------------------


def ways_to_compute(training: lb.TrainingClient, datums: Sequence[lb.Datum], name: str) -> dict[str, Way]:
    """The three ways, each leaving its gradient accumulated."""
    return {
        "built-in": lambda: training.forward_backward(datums, name).result(),
        "custom": lambda: training.forward_backward_custom(datums, LOSSES[name]).result(),
        "two passes": lambda: two_passes(training, datums, LOSSES[name]),
    }


def check_same_gradient(training: lb.TrainingClient, ways: dict[str, Way], tolerance: float) -> None:
    """Raise AssertionError unless all ways give one gradient norm; a learning rate of 0 leaves the weights alone."""
    norms = {}
    for label, way in ways.items():
        way()
        norms[label] = training.optim_step(lb.AdamParams(learning_rate=0.0)).result().metrics["grad_norm"]
    lowest, highest = min(norms.values()), max(norms.values())
    if highest - lowest > tolerance * highest:
        raise AssertionError(f"the ways do not compute the same gradient: norms {norms}")


def summarize(times: Mapping[str, Sequence[float]], peaks: Mapping[str, int], **about: Any) -> dict[str, Any]:
    """A row: median milliseconds of each way, ratios within rounds, and each way's peak memory."""
    medians = {f"{label} ms": 1e3 * statistics.median(values) for label, values in times.items()}
    return {
        **about,
        **medians,
        "custom / built-in": measuring.ratio(times, "custom", "built-in"),
        "two passes / custom": measuring.ratio(times, "two passes", "custom"),
        **{f"{label} peak MB": peak / 1e6 for label, peak in peaks.items()},
    }


def run(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both losses on one model."""
    dtype = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    service = lb.ServiceClient(device=options.device, dtype=dtype)
    with workloads.model_folder(model) as folder:
        if options.lora:
            training = service.create_lora_training_client(folder, rank=options.lora, seed=0)
        else:
            training = service.create_training_client(folder)
    datums = make_datums(options.datums, options.length, options.label_fraction, 256 if model == "tiny" else 32000)
    rows = []
    for name in options.loss or LOSSES:
        ways = ways_to_compute(training, datums, name)
        check_same_gradient(training, ways, tolerance=1e-3 if options.dtype == "bfloat16" else 1e-4)

        def discard() -> None:
            training.discard_gradients().result()

        peaks = {}
        for label, way in ways.items():
            peaks[label] = measuring.peak_memory(way)
            discard()
        times = measuring.interleaved(ways, options.rounds, warm_ups=options.warm_ups, after=discard)
        about = {"model": Path(model).stem, "loss": name, "tokens": sum(d.model_input.length for d in datums)}
        about |= {"labels": options.label_fraction, "adapter rank": options.lora, "rounds": options.rounds}
        rows.append(summarize(times, peaks, **about))
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", action="append", help=f"model to load; repeatable. Default: {', '.join(DEFAULT_MODELS)}"
    )
    parser.add_argument("--loss", action="append", choices=sorted(LOSSES), help="repeatable; all by default")
    parser.add_argument("--device", help="cpu, cuda, ...; by default the best available")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights; by default the device's")
    parser.add_argument("--lora", type=int, help="train an adapter of this rank instead of all weights")
    parser.add_argument("--datums", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="average tokens per datum")
    parser.add_argument(
        "--label-fraction", type=float, default=1.0, help="part of each datum with a weight other than 0"
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds")
    parser.add_argument("--warm-ups", type=int, default=1, help="rounds before them")
    parser.add_argument("--quick", action="store_true", help="the tiny model, two short rounds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="custom_versus_builtin", help="of the result files")
    options = parser.parse_args(arguments)
    options.model = options.model or (["tiny"] if options.quick else list(DEFAULT_MODELS))
    if options.quick:
        options.rounds, options.datums, options.length = 2, 2, 8
    transformers.utils.logging.disable_progress_bar()
    rows = [row for model in options.model for row in run(model, options)]
    print(measuring.markdown(rows))
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
