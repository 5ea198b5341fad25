"""The cost of a custom loss that came as a graph, compared with the built-in loss of the same formula.

    python benchmarks/serve_graphs.py                        # the tiny model and SmolLM2-135M
    python benchmarks/serve_graphs.py --model tiny           # or a directory, .gguf file or hub id
    python benchmarks/serve_graphs.py --quick

`lossbook serve` runs losses that clients upload with tinker's `create_custom_loss` as graphs, node by node. For `cross_entropy` and
`ppo`, one call on the same datums is timed two ways:

* built-in: `forward_backward(datums, "ppo")`
* graph: `forward_backward_custom(datums, loss)`, where the loss is the graph that the SDK would send, read as the server reads it

Before timing, both must give the same gradient norm. The ways alternate within each round; ratios are taken within a round. The
shapes that a graph was tried on are kept, so the call before the first round pays for that. The aim: a median of graph / built-in of
at most 1.1.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import measuring
import torch
import transformers
import workloads
from custom_versus_builtin import check_same_gradient

import lossbook as lb
from lossbook.integrations.serve.graphs import GraphLoss, dry_run, read_graph

DEFAULT_MODELS = ("tiny", "smollm2")


# --- losses, as a client of the hosted service writes them ------------------------------------------------------------


def cross_entropy(logprobs, weights):
    """-Σ w p."""
    loss = -(logprobs * weights).sum()
    return loss, {"custom/nats:sum": loss}


def ppo(logprobs, sampling_logprobs, advantages):
    """Σ -min(r A, clip(r, 0.8, 1.2) A)."""
    ratio = torch.exp(logprobs - sampling_logprobs)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    loss = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    return loss, {"custom/clipped:mean": (ratio != clipped).float().mean(), "custom/ratio:mean": ratio.mean()}


LOSSES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "cross_entropy": (cross_entropy, {"logprobs": 1, "weights": 1}),
    "ppo": (ppo, {"logprobs": 1, "sampling_logprobs": 1, "advantages": 1}),
}


def uploaded(name: str) -> GraphLoss:
    """The loss as the SDK encodes it, read and tried out as by the server."""
    from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

    handle = trace_loss(*LOSSES[name], "benchmark")
    inputs = [{"name": one.name, "rank": one.rank} for one in handle.inputs]
    graph = read_graph(encode_graph(handle).model_dump(), inputs)
    dry_run(graph)
    return GraphLoss(name, graph.inputs, "benchmark", graph)


# --- measuring --------------------------------------------------------------------------------------------------------


def make_datums(count: int, length: int, vocabulary: int) -> list[lb.Datum]:
    """`count` sequences of `length` tokens, all of weight 1."""
    generator = torch.Generator().manual_seed(0)
    datums = []
    for _ in range(count):
        tokens = torch.randint(0, vocabulary, (length + 1,), generator=generator)
        near = -float(torch.tensor(vocabulary).log()) + 0.1 * torch.randn(length, generator=generator)
        inputs = {
            "target_tokens": tokens[1:],
            "weights": torch.ones(length),
            "sampling_logprobs": near,
            "advantages": torch.randn(length, generator=generator),
        }
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


def run(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both losses on one model."""
    service = lb.ServiceClient(device=options.device)
    with workloads.model_folder(model) as folder:
        training = service.create_lora_training_client(folder, rank=options.lora, seed=0)
    datums = make_datums(options.datums, options.length, 256 if model == "tiny" else 32000)
    rows = []
    for name in options.loss or LOSSES:
        loss = uploaded(name)
        built_in = lb.get_loss(name, reduction="sum")
        ways: dict[str, measuring.Way] = {
            "built-in": lambda built_in=built_in: training.forward_backward(datums, built_in).result(),
            "graph": lambda loss=loss: training.forward_backward_custom(datums, loss).result(),
        }
        check_same_gradient(training, ways, tolerance=1e-4)
        times = measuring.interleaved(
            ways, options.rounds, warm_ups=options.warm_ups, after=lambda: training.discard_gradients().result()
        )
        medians = {f"{label} ms": 1e3 * statistics.median(values) for label, values in times.items()}
        about = {"model": Path(model).stem, "loss": name, "datums": options.datums, "tokens": options.length}
        about |= {"nodes": len(loss.graph.nodes), "rounds": options.rounds}
        rows.append({**about, **medians, "graph / built-in": measuring.ratio(times, "graph", "built-in")})
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", action="append", help=f"model to load; repeatable. Default: {', '.join(DEFAULT_MODELS)}"
    )
    parser.add_argument("--loss", action="append", choices=sorted(LOSSES), help="repeatable; all by default")
    parser.add_argument("--device", help="cpu, cuda, ...; by default the best available")
    parser.add_argument("--lora", type=int, default=8, help="rank of the adapter that is trained")
    parser.add_argument("--datums", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens per datum")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--warm-ups", type=int, default=1, help="rounds before them")
    parser.add_argument("--quick", action="store_true", help="the tiny model, two short rounds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="serve_graphs", help="of the result files")
    options = parser.parse_args(arguments)
    options.model = options.model or (["tiny"] if options.quick else list(DEFAULT_MODELS))
    if options.quick:
        options.rounds, options.datums, options.length = 2, 8, 32
    transformers.utils.logging.disable_progress_bar()
    rows = [row for model in options.model for row in run(model, options)]
    print(measuring.markdown(rows))
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
