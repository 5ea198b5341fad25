"""Sampling: each prompt is read once, then its continuations are decoded together, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ...datums.errors import ModelError
from ...datums.types import SamplingParams
from ..model.model import LoadedModel
from ..responses import TopLogprobs
from .decode import Batch, Meter, Progress, Row, limit
from .params import OWN, SampledLogprobs, check_params, check_prompt, check_seeds, is_integer
from .plan import plan_of
from .prepacked import prepacked_weights
from .static.states import States

#: At most so many sequences are decoded together, unless one prompt has more samples.
MAX_ROWS = 64


@dataclass(frozen=True)
class Generated:
    """One continuation.

    tokens       ids, including a stop token
    logprobs     nats, one per token, over the whole vocabulary: under the model itself, at temperature 1, or as was asked
    stop_reason  "stop" for a stop token or string, "length" for max_tokens or the end of the context
    top          the likeliest tokens at each position, where they were asked for
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]
    top: TopLogprobs | None = None


def generate(
    model: LoadedModel,
    prompt: Sequence[int],
    *,
    num_samples: int,
    params: SamplingParams,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Generated]:
    """`num_samples` continuations of one prompt; see `generate_batch`."""
    return generate_batch(model, [prompt], num_samples=num_samples, params=params, on_progress=on_progress)[0]


def generate_batch(
    model: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_samples: int = 1,
    params: SamplingParams,
    seeds: Sequence[int | None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    said: SampledLogprobs = OWN,
) -> list[list[Generated]]:
    """`num_samples` continuations of each prompt, in the prompts' order.

    Prompts are decoded together, padded on the left and masked; each prompt's samples are those that `generate` gives, up
    to rounding, also with a seed. Without a seed every call differs. The global random state is neither read nor changed.
    The model is in eval mode inside and in its own mode again afterwards.

    params       temperature 0 is greedy; top_k (-1: off) applies before top_p; max_tokens None is the rest of the context.
                 `stop` None stops at any end-of-sequence token of model and tokenizer; else only at the given token ids or
                 strings (searched in the decoded continuation), with [] at none
    seeds        one per prompt, None for a new one, replacing the seed of `params`, with which equal prompts get equal samples
    on_progress  called for every token (on a GPU for several in a row), on the sampling thread. An error that it raises ends
                 the call; weights and modes are then as before
    said         which logprobs; the likeliest tokens beside them are not read from buffers of fixed size, so a GPU takes longer

    Raises ModelError for an encoder or impossible parameters, TruncationError for a prompt that fills the
    context, TokenRangeError for ids outside the vocabulary, before anything is computed.
    """
    rules = check_params(model, params, said)
    check_number(num_samples)
    checked = [check_prompt(model, prompt, i, len(prompts), params) for i, prompt in enumerate(prompts)]
    own_seeds = [rules.seed] * len(checked) if seeds is None else check_seeds(seeds, len(checked))
    order = sorted(range(len(checked)), key=lambda i: len(checked[i]), reverse=True)
    together = max(1, MAX_ROWS // int(num_samples))
    results: list[list[Generated]] = [[] for _ in checked]
    steps = max((limit(model, prompt, rules) for prompt in checked), default=0) * -(-len(checked) // together)
    meter = Meter(on_progress)
    # Not inference_mode: buffers filled under it could not take part in training later.
    with torch.no_grad(), _evaluating(model.module), prepacked_weights(model, steps) as logits:
        plan, states = plan_of(model, fixed=not rules.said.topk), States(model.device, model.max_length)
        for members in _together(order, checked, together, pads=plan.pads):
            batch = Batch(
                model,
                [checked[i] for i in members],
                int(num_samples),
                rules,
                seeds=[own_seeds[i] for i in members],
                logits=logits,
                plan=plan,
                states=states,
                meter=meter,
            )
            for i, rows in zip(members, batch.run(), strict=True):
                results[i] = [_generated(row) for row in rows]
    return results


def check_number(num_samples: Any) -> None:
    """Raise ModelError for what is no number of samples."""
    if not is_integer(num_samples) or num_samples < 1:
        raise ModelError(f"num_samples must be an integer of at least 1, not {num_samples!r}")


def _generated(row: Row) -> Generated:
    top = TopLogprobs(*(np.stack(each) for each in zip(*row.top, strict=True))) if row.top else None
    return Generated(row.tokens, row.logprobs, row.stop_reason or "length", top)


def _together(
    order: Sequence[int], prompts: Sequence[Sequence[int]], most: int, *, pads: bool
) -> Iterator[Sequence[int]]:
    """Indices of prompts that are decoded together, at most so many; without padding those of one length."""
    lengths = itertools.groupby(order, key=lambda i: 0 if pads else len(prompts[i]))
    for _, group in lengths:
        members = list(group)
        yield from (members[start : start + most] for start in range(0, len(members), most))


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule has its own mode again."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
