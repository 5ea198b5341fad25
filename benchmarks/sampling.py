"""Sampling compared with transformers' `generate`: tokens per second, several samples for each of several prompts.

Aim: at least twice the tokens per second of `generate` in its fastest setting, with all weights and with LoRA adapters.

Both sample at temperature 1 from the whole vocabulary in the model's dtype, and stop at nothing but the number of
tokens, so both do the same work. `generate` gets every prompt repeated for its samples, as trainers call it, with its
default cache or (`--static`) a static one. Its adapters stay unmerged, as in a trainer; merged they would cost the same
as all weights. Before anything is timed, greedy tokens of both must be equal; where they part, the two tokens must
be within rounding of each other in the model's own logits.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import custom_versus_builtin
import measuring
import torch
import transformers

from lossbook.datums.types import SamplingParams
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.sampling.generate import generate_batch
from lossbook.trainer.sampling.summary import cache_of

RANDOM_LLAMA = "random-llama-38m"
OURS, PEER = "lossbook", "generate"


def default_models() -> list[str]:
    """The random Llama, and real models that an earlier run has converted from GGUF."""
    cache = Path(os.environ.get("LOSSBOOK_CACHE") or "~/.cache/lossbook").expanduser() / "gguf"
    return [RANDOM_LLAMA, *(str(folder) for folder in sorted(cache.glob("*")) if (folder / "config.json").is_file())]


def load(name: str, device: str | None, lora: int) -> LoadedModel:
    """A model in eval mode; with `lora`, with adapters of that rank that are not zero."""
    with tempfile.TemporaryDirectory() as folder:
        source = str(custom_versus_builtin.write_random_llama(Path(folder))) if name == RANDOM_LLAMA else name
        model = load_model(source, device=device)
    if lora:
        add_lora(model, rank=lora, seed=0)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.add_(0.01 * torch.randn_like(parameter))
    model.module.eval()
    return model


def sample_ours(
    model: LoadedModel, prompts: list[list[int]], samples: int, tokens: int, greedy: bool
) -> list[list[int]]:
    """Continuations in the prompts' order, a prompt's samples beside each other."""
    params = SamplingParams(max_tokens=tokens, temperature=0.0 if greedy else 1.0, seed=0, stop=[])
    groups = generate_batch(model, prompts, num_samples=samples, params=params)
    return [sequence.tokens for group in groups for sequence in group]


def sample_peer(
    model: LoadedModel, prompts: list[list[int]], samples: int, tokens: int, greedy: bool, static: bool
) -> list[list[int]]:
    """The same through `generate`."""
    repeated = torch.tensor(prompts, device=model.device).repeat_interleave(samples, 0)
    options: dict[str, Any] = {"cache_implementation": "static"} if static else {}
    options |= {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    module: Any = model.module
    with torch.no_grad():
        sampled = module.generate(
            repeated,
            attention_mask=torch.ones_like(repeated),
            max_new_tokens=tokens,
            pad_token_id=0,
            **options,
        )
    return sampled[:, len(prompts[0]) :].tolist()


def check_same_tokens(model: LoadedModel, prompts: list[list[int]], samples: int, tokens: int, static: bool) -> None:
    """Raise AssertionError unless greedy tokens are equal, up to ties that rounding decides."""
    ours = sample_ours(model, prompts, samples, tokens, True)
    peers = sample_peer(model, prompts, samples, tokens, True, static)
    for i, (mine, other) in enumerate(zip(ours, peers, strict=True)):
        if mine == other:
            continue
        at = next(k for k in range(tokens) if mine[k] != other[k])
        context = torch.tensor([prompts[i // samples] + mine[:at]], device=model.device)
        with torch.no_grad():
            logits = model.module(context).logits[0, -1].float()
        apart = abs(float(logits[mine[at]] - logits[other[at]]))
        if apart > 64 * torch.finfo(next(model.module.parameters()).dtype).eps * max(1.0, float(logits.abs().max())):
            raise AssertionError(
                f"row {i} parts from generate at token {at}: {mine[at]} and {other[at]}, {apart} apart"
            )


def measure(name: str, lora: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One model, with all weights or adapters, at every prompt length."""
    model = load(name, options.device, lora)
    # Ending at nothing is what `stop=[]` means; `min_new_tokens` would forbid the end token and change the samples.
    settings: Any = model.module
    settings.generation_config = transformers.GenerationConfig()
    settings.config.eos_token_id = None
    results = []
    for length in options.length:
        generator = torch.Generator().manual_seed(0)
        top = min(model.vocab_size, 32000)
        prompts = torch.randint(3, top, (options.prompts, length), generator=generator).tolist()
        check_same_tokens(model, prompts, min(options.samples, 2), min(options.tokens, 16), options.static)
        ways = {
            OURS: lambda p=prompts: sample_ours(model, p, options.samples, options.tokens, False),
            PEER: lambda p=prompts: sample_peer(model, p, options.samples, options.tokens, False, options.static),
        }
        times = measuring.interleaved(ways, options.rounds, warm_ups=0 if options.no_warm_up else 1)
        count = options.prompts * options.samples * options.tokens
        speeds = {label: measuring.quartiles([count / s for s in taken]).median for label, taken in times.items()}
        results.append(
            {
                "model": RANDOM_LLAMA if name == RANDOM_LLAMA else Path(name).name[:24],
                "weights": f"LoRA, rank {lora}" if lora else "all",
                "cache": cache_of(model),
                "cache of generate": "static" if options.static else "dynamic",
                "prompts x samples": f"{options.prompts} x {options.samples}",
                "prompt tokens": length,
                "new tokens": options.tokens,
                "rounds": options.rounds,
                "lossbook tokens/s": speeds[OURS],
                "generate tokens/s": speeds[PEER],
                "times as fast": measuring.ratio(times, PEER, OURS),
            }
        )
        print(measuring.markdown(results[-1:]).splitlines()[-1], flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print a table, write it; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help=f"repeatable. Default: {RANDOM_LLAMA} and converted GGUFs")
    parser.add_argument("--device", help="cpu, cuda, ...; the best there is by default")
    parser.add_argument("--weights", choices=["all", "lora"], action="append", help="repeatable; both by default")
    parser.add_argument("--rank", type=int, default=8, help="of the adapters")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8, help="of each prompt")
    parser.add_argument("--length", type=int, action="append", help="prompt tokens; repeatable. Default: 64 and 256")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each sample")
    parser.add_argument("--static", action="store_true", help="`generate` with a static cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-warm-up", action="store_true", help="the check of greedy tokens has warmed both up")
    parser.add_argument("--quick", action="store_true", help="the random model, few and short sequences, one round")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--name", default="sampling", help="of the result files")
    options = parser.parse_args(arguments)
    options.length = options.length or [64, 256]
    if options.quick:
        options.length, options.prompts, options.samples, options.tokens, options.rounds = [8], 2, 2, 20, 1
    transformers.utils.logging.disable_progress_bar()
    models = options.model or ([RANDOM_LLAMA] if options.quick else default_models())
    kinds = options.weights or ["all", "lora"]
    rows = [
        row
        for name in models
        for kind in kinds
        for row in measure(name, options.rank if kind == "lora" else 0, options)
    ]
    print(measuring.markdown(rows))
    measuring.write(options.name, rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
