"""What a custom loss costs beside a built-in one, and beside a custom loss in two passes, as hosted services compute it.

    python benchmarks/custom_versus_builtin.py                      # the tiny model and a random Llama of 38M parameters
    python benchmarks/custom_versus_builtin.py --model PATH         # a real one: directory, .gguf file or hub id
    python benchmarks/custom_versus_builtin.py --device cuda

For `cross_entropy` and `grpo`, one call is timed three ways on the same datums and weights:

* built-in: `forward_backward(datums, "grpo")`
* custom: `forward_backward_custom(datums, fn)`, the same maths as a function of datums and logprobs
* two passes: a forward without gradients for all logprobs, `fn` on them as leaves, and a second forward with a backward whose
  loss is linear in the logprobs, with d loss / d logprob as its weights

All three must give the same gradient norm before anything is timed. The three ways alternate within each round, in an order
that rotates, so that a slow spell of the machine falls on all; a ratio is taken within a round, and the median over rounds is
reported with its quartiles. The aim is a median of custom / built-in of at most 1.05.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import lossbook as lb
from lossbook.trainer.tiny import build_tiny_tokenizer

RESULTS = Path(__file__).resolve().parent / "results"
RANDOM_LLAMA = "random-llama-38m"
Way = Callable[[], Any]


@dataclass(frozen=True)
class Result:
    """One model and loss. Times in milliseconds a call (medians); ratios: median, lower and upper quartile of rounds."""

    model: str
    loss: str
    tokens: int
    label_fraction: float
    rounds: int
    built_in_ms: float
    custom_ms: float
    two_passes_ms: float
    custom_ratio: float
    custom_ratio_low: float
    custom_ratio_high: float
    two_passes_ratio: float
    two_passes_ratio_low: float
    two_passes_ratio_high: float


# --- the same maths as functions of datums and logprobs ---------------------------------------------------------------


def joined(data: Sequence[lb.Datum], key: str) -> torch.Tensor:
    """[T]: an input of all datums, one after the other."""
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
    """A custom loss without keeping the forward's graph: forward, loss on leaves, forward and backward of a surrogate."""
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
    """A leaf's gradient; zeros when the loss did not touch it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


# --- models and data --------------------------------------------------------------------------------------------------


def write_random_llama(folder: Path) -> Path:
    """A Llama of random weights and 38M parameters: 6 layers of 512, a vocabulary of 32,768, tied."""
    config = transformers.LlamaConfig(
        vocab_size=32768,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=256,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
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


def seconds(way: Way, cuda: bool) -> float:
    """Wall time of one call."""
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    way()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(training: lb.TrainingClient, ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round."""
    cuda = training.get_info().device.startswith("cuda")
    times: dict[str, list[float]] = {label: [] for label in ways}
    labels = list(ways)
    for number in range(rounds + 2):
        shift = number % len(labels)
        for label in labels[shift:] + labels[:shift]:
            taken = seconds(ways[label], cuda)
            training.discard_gradients().result()
            if number >= 2:  # the first two rounds warm up
                times[label].append(taken)
    return times


def summarize(times: dict[str, list[float]], **about: Any) -> Result:
    """Medians, and ratios to the built-in of the same round."""
    ratios = {
        label: [a / b for a, b in zip(times[label], times["built-in"], strict=True)]
        for label in ("custom", "two passes")
    }
    quartiles = {label: statistics.quantiles(values, n=4) for label, values in ratios.items()}
    return Result(
        **about,
        built_in_ms=1e3 * statistics.median(times["built-in"]),
        custom_ms=1e3 * statistics.median(times["custom"]),
        two_passes_ms=1e3 * statistics.median(times["two passes"]),
        custom_ratio_low=quartiles["custom"][0],
        custom_ratio=quartiles["custom"][1],
        custom_ratio_high=quartiles["custom"][2],
        two_passes_ratio_low=quartiles["two passes"][0],
        two_passes_ratio=quartiles["two passes"][1],
        two_passes_ratio_high=quartiles["two passes"][2],
    )


def run(model: str, options: argparse.Namespace) -> list[Result]:
    """Both losses on one model."""
    dtype = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16}[options.dtype]
    service = lb.ServiceClient(device=options.device, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        source = str(write_random_llama(Path(folder))) if model == RANDOM_LLAMA else model
        if options.lora:
            training = service.create_lora_training_client(source, rank=options.lora, seed=0)
        else:
            training = service.create_training_client(source)
    datums = make_datums(options.datums, options.length, options.label_fraction, 256 if model == "tiny" else 32000)
    results = []
    for name in LOSSES:
        ways = ways_to_compute(training, datums, name)
        check_same_gradient(training, ways, tolerance=1e-3 if options.dtype == "bfloat16" else 1e-4)
        about = {"model": Path(model).stem, "loss": name, "tokens": sum(d.model_input.length for d in datums)}
        about |= {"label_fraction": options.label_fraction, "rounds": options.rounds}
        results.append(summarize(measure(training, ways, options.rounds), **about))
        print(row(results[-1]), flush=True)
    return results


# --- reporting --------------------------------------------------------------------------------------------------------

HEADER = """\
| model | loss | tokens | built-in ms | custom ms | two passes ms | custom / built-in | two passes / built-in |
|---|---|---|---|---|---|---|---|"""


def row(result: Result) -> str:
    """One line of the markdown table; quartiles in brackets."""
    ratios = [
        f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
        for ratio, low, high in (
            (result.custom_ratio, result.custom_ratio_low, result.custom_ratio_high),
            (result.two_passes_ratio, result.two_passes_ratio_low, result.two_passes_ratio_high),
        )
    ]
    times = [f"{value:.1f}" for value in (result.built_in_ms, result.custom_ms, result.two_passes_ms)]
    return f"| {' | '.join([result.model, result.loss, str(result.tokens), *times, *ratios])} |"


def environment(device: str | None) -> dict[str, Any]:
    """What the numbers depend on."""
    on_gpu = device != "cpu" and torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "lossbook": lb.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def write(results: Sequence[Result], about: dict[str, Any], folder: Path, name: str) -> None:
    """`<name>.json` with everything and `<name>.csv` with a line a result."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"environment": about, "results": [asdict(result) for result in results]}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*about, *asdict(results[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**about, **asdict(result)} for result in results)


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Measure, print the table, write it; returns the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help=f"model to load; repeatable. Default: tiny, {RANDOM_LLAMA}")
    parser.add_argument("--device", help="cpu, cuda, ...; the best there is by default")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the weights; by default the device's")
    parser.add_argument("--lora", type=int, help="train an adapter of this rank instead of all weights")
    parser.add_argument("--datums", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens a datum, on average")
    parser.add_argument(
        "--label-fraction", type=float, default=1.0, help="part of each datum with a weight other than 0"
    )
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds; at least 2")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--name", default="custom_versus_builtin", help="of the result files")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    about = environment(options.device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(HEADER)
    results = [result for model in options.model or ["tiny", RANDOM_LLAMA] for result in run(model, options)]
    write(results, about, options.out, options.name)
    return results


if __name__ == "__main__":
    main()
