"""Sampling: each prompt is read once, then all its continuations are decoded together, a token at a time."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..datums.errors import ModelError, TokenRangeError, TruncationError
from ..datums.types import SamplingParams, token_list
from .models import LoadedModel

#: Sequences decoded together at most, unless one prompt alone has more samples.
MAX_ROWS = 64


@dataclass(frozen=True)
class Generated:
    """One continuation.

    tokens       ids, the stop token included when one was met
    logprobs     nats, one a token: of the model itself, that is at temperature 1 and over the whole vocabulary
    stop_reason  "stop" when a stop token or string was met, "length" at max_tokens or the end of the context
    """

    tokens: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "length"]


def generate(model: LoadedModel, prompt: Sequence[int], *, num_samples: int, params: SamplingParams) -> list[Generated]:
    """`num_samples` continuations of one prompt; see `generate_batch`."""
    return generate_batch(model, [prompt], num_samples=num_samples, params=params)[0]


def generate_batch(
    model: LoadedModel, prompts: Sequence[Sequence[int]], *, num_samples: int = 1, params: SamplingParams
) -> list[list[Generated]]:
    """`num_samples` continuations of each prompt, in the prompts' order.

    Prompts are decoded together, with padding on the left that the model does not see; each prompt's samples are
    those that `generate` would give, up to rounding, also with a seed. Without a seed every call differs; the
    global random state is neither read nor changed. The model is in eval mode meanwhile, and as before afterwards.

    Of `params`: temperature 0 is greedy; top_k (-1: off) applies before top_p; max_tokens None is the room left in
    the context. `stop` None stops at any end-of-sequence token of model and tokenizer; otherwise only at the
    given token ids or strings (looked for in the decoded continuation), and [] at nothing.

    Raises ModelError for an encoder or impossible parameters, TruncationError for a prompt that fills the
    context, TokenRangeError for ids outside the vocabulary, before anything is computed.
    """
    rules = _rules(model, params)
    if isinstance(num_samples, bool) or not isinstance(num_samples, Integral) or num_samples < 1:
        raise ModelError(f"num_samples must be an integer of at least 1, not {num_samples!r}")
    checked = [_check_prompt(model, prompt, i, len(prompts), params) for i, prompt in enumerate(prompts)]
    order = sorted(range(len(checked)), key=lambda i: len(checked[i]), reverse=True)
    together = max(1, MAX_ROWS // int(num_samples))
    results: list[list[Generated]] = [[] for _ in checked]
    with torch.no_grad(), _evaluating(model.module):  # not inference_mode: buffers it fills could not be trained with
        for start in range(0, len(order), together):
            members = order[start : start + together]
            batch = _Batch(model, [checked[i] for i in members], int(num_samples), rules)
            for i, found in zip(members, batch.run(), strict=True):
                results[i] = found
    return results


@dataclass(frozen=True)
class _Rules:
    """SamplingParams, checked, with `stop` taken apart."""

    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    max_tokens: int | None
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]


@dataclass
class _Row:
    """One continuation while it grows."""

    prompt: int
    sample: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: Literal["stop", "length"] | None = None


class _Batch:
    """The decoding of some prompts together: `rows` and the cache's rows are the same, in the same order."""

    def __init__(self, model: LoadedModel, prompts: list[list[int]], num_samples: int, rules: _Rules) -> None:
        self.model, self.prompts, self.num_samples, self.rules = model, prompts, num_samples, rules
        self.head = model.head()
        self.random = [_generator(rules.seed) for _ in prompts]
        rooms = [(model.max_length or len(prompt) + (rules.max_tokens or 0)) - len(prompt) for prompt in prompts]
        self.everything = [
            _Row(p, sample, min(rules.max_tokens or room, room))
            for p, room in enumerate(rooms)
            for sample in range(num_samples)
        ]
        self.rows = list(self.everything)

    def run(self) -> list[list[Generated]]:
        """Decode until every row has stopped."""
        hidden, cache, mask = self._read_prompts()
        for step in range(max(row.limit for row in self.rows)):
            tokens = self._extend(self.head.logits(hidden))
            if all(row.stop_reason for row in self.rows):
                break
            tokens, mask = self._drop_finished(tokens, cache, mask)
            hidden = self._advance(tokens, cache, mask, step)
        done = [Generated(row.tokens, row.logprobs, row.stop_reason or "length") for row in self.everything]
        return [done[i : i + self.num_samples] for i in range(0, len(done), self.num_samples)]

    def _read_prompts(self) -> tuple[Tensor, Any, Tensor | None]:
        """Last hidden states [rows, d], the cache repeated for each sample, and which cached positions are real."""
        width = max(map(len, self.prompts))
        padded = torch.tensor([[0] * (width - len(p)) + p for p in self.prompts], device=self.model.device)
        starts = torch.tensor([[width - len(p)] for p in self.prompts], device=self.model.device)
        mask = torch.arange(width, device=padded.device) >= starts  # [prompts, width]
        options = {} if not starts.any() else self._padding_options(mask, (mask.cumsum(1) - 1).clamp(min=0))
        output = self.model.backbone(input_ids=padded, use_cache=True, **options)
        cache = output.past_key_values
        if cache is None:
            raise ModelError(f"{self.model.name} keeps no cache that sampling could extend")
        if self.num_samples > 1:
            cache.batch_repeat_interleave(self.num_samples)
        hidden, mask = (x.repeat_interleave(self.num_samples, 0) for x in (output.last_hidden_state[:, -1], mask))
        return hidden, cache, mask if options else None

    def _advance(self, tokens: Tensor, cache: Any, mask: Tensor | None, step: int) -> Tensor:
        """Hidden states [rows, d] after one more token each."""
        options = {}
        if mask is not None:
            grown = nn.functional.pad(mask, (0, step + 1), value=True)
            options = self._padding_options(grown, mask.sum(1, keepdim=True) + step)
        output = self.model.backbone(input_ids=tokens[:, None], past_key_values=cache, use_cache=True, **options)
        return output.last_hidden_state[:, -1]

    def _padding_options(self, mask: Tensor, positions: Tensor) -> dict[str, Tensor]:
        takes_positions = "position_ids" in inspect.signature(self.model.backbone.forward).parameters
        return {"attention_mask": mask.long()} | ({"position_ids": positions} if takes_positions else {})

    def _extend(self, logits: Tensor) -> Tensor:
        """Choose a token [rows] from logits [rows, V] and note it in the rows that are not finished."""
        chosen = _choose(logits, self.rules, self._uniforms())
        logprobs = logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)
        for row, token, logprob in zip(self.rows, chosen.tolist(), logprobs.tolist(), strict=True):
            if row.stop_reason is not None:
                continue
            if math.isnan(logprob):
                raise ModelError(f"{self.model.name} gave NaN logits after {len(row.tokens)} generated tokens")
            row.tokens.append(token)
            row.logprobs.append(min(logprob, 0.0))  # rounding can leave a certain token a hair above
            if token in self.rules.stop_ids or self._ends_in_stop_string(row.tokens):
                row.stop_reason = "stop"
            elif len(row.tokens) == row.limit:
                row.stop_reason = "length"
        return chosen

    def _uniforms(self) -> Tensor | None:
        """One number in [0, 1) for each row. Each prompt has its own stream, so neighbours do not change its samples."""
        if self.rules.temperature == 0:
            return None
        drawn = {
            prompt: torch.rand(self.num_samples, generator=self.random[prompt], dtype=torch.float64).tolist()
            for prompt in {row.prompt for row in self.rows}
        }
        return torch.tensor([drawn[row.prompt][row.sample] for row in self.rows], dtype=torch.float64)

    def _ends_in_stop_string(self, tokens: list[int]) -> bool:
        """Whether the newest token completed a stop string. Only the tail that can hold one is decoded."""
        if not self.rules.stop_strings:
            return False
        longest = max(len(text.encode()) for text in self.rules.stop_strings)
        tail = tokens[-(longest + 8) :]  # a token holds a byte at least; decoders may change the first few
        text = self.model.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in self.rules.stop_strings)

    def _drop_finished(self, tokens: Tensor, cache: Any, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Take finished rows out of the cache once they are half of it: copying it for every one would cost more."""
        alive = [i for i, row in enumerate(self.rows) if row.stop_reason is None]
        if 2 * len(alive) > len(self.rows):
            return tokens, mask
        kept = torch.tensor(alive, device=tokens.device)
        cache.batch_select_indices(kept)
        self.rows = [self.rows[i] for i in alive]
        return tokens[kept], None if mask is None else mask[kept]


def _choose(logits: Tensor, rules: _Rules, uniforms: Tensor | None) -> Tensor:
    """One token id a row [rows]: the likeliest, or by inverting the distribution function at `uniforms` [rows]."""
    if uniforms is None:
        return logits.argmax(1)
    vocabulary = logits.shape[1]
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # sums over 10^5 tokens, exact enough
    values, ids = logits, None
    if 0 < rules.top_k < vocabulary or rules.top_p < 1:
        values, ids = logits.topk(min(rules.top_k, vocabulary) if rules.top_k > 0 else vocabulary, dim=1)
    scaled = (values - values.amax(1, keepdim=True)).to(wide) / rules.temperature
    probabilities = scaled.exp() / scaled.exp().sum(1, keepdim=True)
    if rules.top_p < 1:  # the likeliest come first: keep those before which less than top_p has gathered
        before = probabilities.cumsum(1) - probabilities
        probabilities = probabilities.where(before < rules.top_p, 0.0)
    gathered = probabilities.cumsum(1)
    total = gathered[:, -1:]
    found = torch.searchsorted(gathered, uniforms.to(logits.device, wide)[:, None] * total, right=True)
    found = found.minimum((gathered < total).sum(1, keepdim=True))  # never beyond the last possible token
    return (found if ids is None else ids.gather(1, found))[:, 0]


def _rules(model: LoadedModel, params: SamplingParams) -> _Rules:
    if not (isinstance(params.temperature, Real) and 0 <= params.temperature < math.inf):
        raise ModelError(f"temperature must be 0 (greedy) or positive and finite, not {params.temperature}")
    if not 0 < params.top_p <= 1:
        raise ModelError(f"top_p must be above 0 and at most 1 (off), not {params.top_p}")
    if params.top_k != -1 and params.top_k < 1:
        raise ModelError(f"top_k must be -1 (off) or at least 1, not {params.top_k}")
    if params.max_tokens is not None and params.max_tokens < 1:
        raise ModelError(f"max_tokens must be at least 1, or None for the room in the context, not {params.max_tokens}")
    ids, strings = _stops(model, params.stop)
    return _Rules(
        float(params.temperature), params.top_k, float(params.top_p), params.seed, params.max_tokens, ids, strings
    )


def _stops(model: LoadedModel, stop: Any) -> tuple[frozenset[int], tuple[str, ...]]:
    if stop is None:
        return frozenset(_end_tokens(model)), ()
    items: list[Any] = [stop] if isinstance(stop, str | Integral) else list(stop)
    if all(isinstance(item, str) for item in items):
        if "" in items:
            raise ModelError("an empty string in stop would stop everything; leave it out")
        return frozenset(), tuple(items)
    if not all(isinstance(item, Integral) for item in items):
        raise ModelError(f"stop must be strings or token ids, not a mixture: {items[:8]}")
    for token in items:
        if not 0 <= token < model.vocab_size:
            raise TokenRangeError(f"stop token {token} is outside the vocabulary [0, {model.vocab_size})")
    return frozenset(map(int, items)), ()


def _end_tokens(model: LoadedModel) -> set[int]:
    module: Any = model.module
    sources = (module.config.get_text_config(), getattr(module, "generation_config", None), model.tokenizer)
    named = [getattr(source, "eos_token_id", None) for source in sources]
    return {token for ids in named if ids is not None for token in (ids if isinstance(ids, list) else [ids])}


def _check_prompt(
    model: LoadedModel, prompt: Sequence[int], index: int, count: int, params: SamplingParams
) -> list[int]:
    who = "the prompt" if count == 1 else f"prompt {index} of {count}"
    tokens = token_list(prompt)
    if not tokens:
        raise ModelError(f"{who} is empty; sampling needs a token to begin with, such as the tokenizer's bos_token_id")
    for position, token in enumerate(tokens):
        if not 0 <= token < model.vocab_size:
            raise TokenRangeError(
                f"{who} has token {token} at position {position}; {model.name} knows tokens 0 to {model.vocab_size - 1}"
            )
    if model.max_length is None and params.max_tokens is None:
        raise ModelError(f"{model.name} has no context limit, so max_tokens must be given")
    if model.max_length is not None and len(tokens) >= model.max_length:
        raise TruncationError(
            f"{who} has {len(tokens)} tokens, which leaves no room in the context of {model.max_length} of {model.name}"
        )
    return tokens


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(generator.seed() if seed is None else seed)
    return generator


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every submodule's own mode again, which need not be that of the whole."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
