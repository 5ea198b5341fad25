"""What a call costs that goes through `lossbook serve`, compared with the same call in the client's own process.

    python benchmarks/serve_http.py                      # the tiny model and SmolLM2-135M, 64 x 512 tokens
    python benchmarks/serve_http.py --model tiny --quick

For `cross_entropy`, and for `ppo` uploaded as a custom graph, one `forward_backward` on the same datums is timed:

* in process: `lossbook.integrations.tinker`, in this process
* HTTP: the official `tinker` SDK in this process, the server as a child of it on loopback
* HTTP, graph: the same with the loss as a graph, beside the built-in loss over HTTP

Server and client have the same number of threads. Before timing, both must give the same loss. The ways alternate within each round;
ratios are taken within a round. Aims: HTTP / in process at most 1.15, graph / built-in over HTTP at most 1.1.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measuring
import torch
import transformers
import workloads
from serve_graphs import ppo

DEFAULT_MODELS = ("tiny", "smollm2")
SERVE = "from lossbook.cookbook.cli import command; command()"


@contextmanager
def serving(model: str, folder: str, root: Path, threads: int, together: int) -> Iterator[str]:
    """A server of one model as a child process; gives its address."""
    flags = ["serve", "--port", "0", "--root", str(root), "--models", model, folder]
    flags += ["--tokens-per-micro-batch", str(together)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    child = subprocess.Popen(
        [sys.executable, "-c", SERVE, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        assert child.stdout is not None
        url = next(line.rpartition("=")[2].strip() for line in child.stdout if "TINKER_BASE_URL=" in line)
        yield url
    finally:
        child.kill()
        child.wait()


def make_datums(types: Any, count: int, length: int, vocabulary: int) -> list[Any]:
    """`count` sequences of `length` tokens in a door's or the SDK's types, with what both losses read."""
    generator = torch.Generator().manual_seed(0)
    datums = []
    for _ in range(count):
        tokens = torch.randint(0, vocabulary, (length + 1,), generator=generator)
        near = -float(torch.tensor(vocabulary).log()) + 0.1 * torch.randn(length, generator=generator)
        inputs = {"target_tokens": tokens[1:], "logprobs": near, "advantages": torch.randn(length, generator=generator)}
        given = {key: types.TensorData.from_torch(value) for key, value in inputs.items()}
        datums.append(types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1].tolist()), loss_fn_inputs=given))
    return datums


def uploaded_ppo(logprobs, q, advantages):  # "logprobs" as an input is the model's own
    """Σ -min(r A, clip(r, 0.8, 1.2) A)."""
    return ppo(logprobs, q, advantages)


def run(model: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All ways on one model."""
    import tinker

    import lossbook.integrations.tinker as door

    vocabulary = 256 if model == "tiny" else 32000
    with workloads.model_folder(model) as folder, tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        door.configure(root=root / "own", models={model: str(folder)}, tokens_per_micro_batch=options.together)
        with serving(model, str(folder), root / "served", options.threads, options.together) as url:
            service = tinker.ServiceClient(base_url=url, api_key="tml-local")
            # before a model of this process runs: torch.fx changes all modules while it traces
            handle = service.create_custom_loss(uploaded_ppo, {"logprobs": 1, "q": 1, "advantages": 1}).result()
            own = door.ServiceClient().create_lora_training_client(model, rank=options.lora, seed=0)
            served = service.create_lora_training_client(model, rank=options.lora, seed=0)
            data = make_datums(door.types, options.datums, options.length, vocabulary)
            sent = make_datums(tinker.types, options.datums, options.length, vocabulary)
            graphed = [
                tinker.types.Datum(
                    model_input=one.model_input,
                    loss_fn_inputs={
                        "target_tokens": one.loss_fn_inputs["target_tokens"],
                        "q": one.loss_fn_inputs["logprobs"],
                        "advantages": one.loss_fn_inputs["advantages"],
                    },
                )
                for one in sent
            ]
            ways: dict[str, measuring.Way] = {
                "in process": lambda: own.forward_backward(data, "ppo").result(),
                "HTTP": lambda: served.forward_backward(sent, "ppo").result(),
                "HTTP, graph": lambda: served.forward_backward_custom(graphed, handle).result(),
            }
            losses = {label: way().metrics["loss:sum"] for label, way in ways.items()}
            assert max(losses.values()) - min(losses.values()) <= 1e-3 * (1 + abs(losses["HTTP"])), losses
            times = measuring.interleaved(ways, options.rounds, warm_ups=options.warm_ups)
    about = {"model": Path(model).stem, "datums": options.datums, "tokens": options.length, "rounds": options.rounds}
    medians = {f"{label} ms": 1e3 * statistics.median(values) for label, values in times.items()}
    ratios = {
        "HTTP / in process": measuring.ratio(times, "HTTP", "in process"),
        "graph / built-in": measuring.ratio(times, "HTTP, graph", "HTTP"),
    }
    return [{**about, **medians, **ratios}]


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--model", action="append", help=f"model to load; repeatable. Default: {', '.join(DEFAULT_MODELS)}"
    )
    parser.add_argument("--lora", type=int, default=8, help="rank of the adapter that is trained")
    parser.add_argument("--datums", type=int, default=64)
    parser.add_argument("--length", type=int, default=512, help="tokens per datum")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of the server and of this process"
    )
    parser.add_argument("--together", type=int, default=2048, help="most tokens of a micro-batch, for memory")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--warm-ups", type=int, default=1, help="rounds before them")
    parser.add_argument("--quick", action="store_true", help="the tiny model, two short rounds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="serve_http", help="of the result files")
    options = parser.parse_args(arguments)
    options.model = options.model or (["tiny"] if options.quick else list(DEFAULT_MODELS))
    if options.quick:
        options.rounds, options.datums, options.length = 2, 8, 32
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    rows = [row for model in options.model for row in run(model, options)]
    print(measuring.markdown(rows))
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
