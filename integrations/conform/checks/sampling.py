"""Samples, and logprobs of the sampler."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..promises import Broken, promise
from ..server import Server, logprobs_of

#: So many standard deviations from its mean a count may lie: by chance about once in two million checks.
_DEVIATIONS = 5.0
#: The distribution is asked at both.
_TEMPERATURES = (1.0, 0.25)


def moved(server: Server) -> Any:
    """A client after two steps, so that its weights are not the base model's."""
    client = server.client()
    for _ in range(2):
        server.backward(client, server.data)
        server.step(client)
    return client


def prompt_of(server: Server, tokens: list[int]) -> Any:
    """The API's prompt."""
    return server.api.ModelInput.from_ints([int(token) for token in tokens])


def line(server: Server) -> list[int]:
    """The first datum's tokens with its last target."""
    first = server.data[0]
    return [*map(int, first.tokens), int(first.targets[-1])]


def scored(server: Server, sampler: Any, tokens: list[int]) -> np.ndarray:
    """The sampler's logprob of each token but the first. Raises Broken where the first has one, or another has none."""
    given = server.answer(sampler.compute_logprobs(prompt_of(server, tokens)))
    if len(given) != len(tokens):
        raise Broken(f"compute_logprobs gave {len(given)} logprobs for {len(tokens)} tokens")
    if given[0] is not None or any(one is None for one in given[1:]):
        raise Broken(f"compute_logprobs has None at {[i for i, one in enumerate(given) if one is None]}, not at [0]")
    return np.asarray(given[1:], np.float64)


def drawn(server: Server, sampler: Any, count: int, prompt: list[int], **params: Any) -> list[Any]:
    """That many sampled sequences, at most 64 to a call."""
    sequences: list[Any] = []
    while len(sequences) < count:
        wanted = min(64, count - len(sequences))
        sampled = server.answer(
            sampler.sample(prompt_of(server, prompt), wanted, server.api.SamplingParams(**params))
        ).sequences
        if len(sampled) != wanted:
            raise Broken(f"num_samples={wanted} gave {len(sampled)} sequences")
        sequences += sampled
    for one in sequences:
        if one.logprobs is None or len(one.logprobs) != len(one.tokens) or not one.tokens:
            raise Broken(f"a sequence of {len(one.tokens)} tokens has {len(one.logprobs or [])} logprobs")
    return sequences


@promise(
    "logprobs.agree",
    "compute_logprobs of a sampler gives the logprobs of the trainer's forward.",
    "weights that reach the sampler late, in another dtype or without the adapter; a temperature in compute_logprobs",
)
def logprobs_agree(server: Server) -> str:
    client = moved(server)
    trainer = logprobs_of(server.forward(client, server.data[:1]))[0]
    return server.equal(scored(server, server.sampler(client), line(server)), trainer, "sampler and trainer")


@promise(
    "logprobs.prompt",
    "include_prompt_logprobs gives what compute_logprobs gives.",
    "prompt logprobs that follow the temperature, or are shifted by one",
)
def prompt_logprobs(server: Server) -> str:
    sampler, tokens = server.sampler(moved(server)), line(server)
    params = server.api.SamplingParams(max_tokens=1, temperature=0.5, seed=1)
    response = server.answer(sampler.sample(prompt_of(server, tokens), 1, params, include_prompt_logprobs=True))
    given = response.prompt_logprobs
    if given is None or len(given) != len(tokens):
        raise Broken(f"{len(given or [])} prompt logprobs for {len(tokens)} tokens")
    return server.equal([np.nan if one is None else one for one in given[1:]], scored(server, sampler, tokens), "both")


@promise(
    "sample.logprobs",
    "At temperature 1 the logprobs of sampled tokens are those that the trainer's forward gives them.",
    "logprobs after top_k or top_p, of another dtype, or of the token before",
)
def sampled_logprobs(server: Server) -> str:
    client, prompt = moved(server), line(server)
    one = drawn(server, server.sampler(client), 1, prompt, max_tokens=6, temperature=1.0, seed=3, stop=[])[0]
    whole = [*prompt, *one.tokens]
    example = server.data[0]
    asked = type(example)(np.array(whole[:-1]), {"target_tokens": np.array(whole[1:])})
    asked = asked.having(weights=np.ones(len(asked), np.float32))
    trainer = logprobs_of(server.forward(client, [asked]))[0][-len(one.tokens) :]
    return server.equal(np.asarray(one.logprobs), trainer, "sampler and trainer")


@promise(
    "sample.logprobs_temperature",
    "At temperature T sampled tokens have logprobs of the scaled distribution: those of two tokens differ by 1/T times as much.",
    "logprobs taken before the division by the temperature",
)
def scaled_logprobs(server: Server) -> str:
    sampler, prompt, temperature = server.sampler(moved(server)), line(server), 0.5
    sequences = drawn(server, sampler, 32, prompt, max_tokens=1, temperature=temperature, seed=5, stop=[])
    given = {int(one.tokens[0]): float(one.logprobs[0]) for one in sequences}
    if len(given) < 2:
        return "one token was sampled 32 times, so there is nothing to compare"
    tokens = sorted(given, key=lambda token: given[token])[:: max(1, len(given) // 6)]
    plain = {token: float(scored(server, sampler, [*prompt, token])[-1]) for token in tokens}
    base = tokens[-1]
    apart_by = [given[token] - given[base] for token in tokens]
    expected = [(plain[token] - plain[base]) / temperature for token in tokens]
    return server.equal(apart_by, expected, f"differences at temperature {temperature:g} and scaled")


@promise(
    "sample.temperature",
    "Sampled tokens come as often as their logprobs say, at temperature 1 and below.",
    "a temperature that is not used, a seed shared by the samples of a call, samples that are copies of one",
)
def frequencies(server: Server) -> str:
    sampler, prompt, told = server.sampler(moved(server)), line(server), []
    count = 32 * server.settings.examples
    for temperature in _TEMPERATURES:
        sequences = drawn(server, sampler, 2 * count, prompt, max_tokens=1, temperature=temperature, stop=[])
        pairs = [(int(one.tokens[0]), float(one.logprobs[0])) for one in sequences]
        known = {token: float(np.exp(logprob)) for token, logprob in pairs[:count]}
        share = min(sum(known.values()), 1.0)
        hits = sum(token in known for token, _ in pairs[count:])
        spread = np.sqrt(max(count * share * (1 - share), 1.0))
        figure = (
            f"at temperature {temperature:g} {hits} of {count} samples are tokens of probability {share:.3f} in all"
        )
        if abs(hits - count * share) > _DEVIATIONS * spread or sum(known.values()) > 1 + server.settings.tolerance:
            raise Broken(figure)
        told.append(figure)
    return "; ".join(told)


@promise(
    "sample.greedy",
    "Temperature 0 takes the likeliest token, whatever the seed.",
    "a temperature of 0 read as unset; noise between calls",
)
def greedy(server: Server) -> str:
    sampler, prompt = server.sampler(moved(server)), line(server)
    runs = [drawn(server, sampler, 1, prompt, max_tokens=6, temperature=0.0, seed=seed, stop=[])[0] for seed in (1, 2)]
    if list(runs[0].tokens) != list(runs[1].tokens):
        raise Broken(f"two seeds gave {list(runs[0].tokens)} and {list(runs[1].tokens)}")
    best = float(scored(server, sampler, [*prompt, runs[0].tokens[0]])[-1])
    sampled = drawn(server, sampler, 32, prompt, max_tokens=1, temperature=1.0, seed=7, stop=[])
    other = max(float(one.logprobs[0]) for one in sampled)
    if other > best + server.settings.tolerance:
        raise Broken(f"its token has logprob {best:.4f}, one that was sampled at temperature 1 has {other:.4f}")
    return f"two seeds gave the same {len(runs[0].tokens)} tokens; none of 32 samples is likelier than the first"


@promise(
    "sample.seed",
    "Equal seeds give equal samples, and other seeds others.",
    "a seed that is not used, or used once for all calls",
)
def seeds(server: Server) -> str:
    sampler, prompt = server.sampler(moved(server)), line(server)
    runs = [
        [
            tuple(one.tokens)
            for one in drawn(server, sampler, 4, prompt, max_tokens=6, temperature=1.0, seed=seed, stop=[])
        ]
        for seed in (11, 11, 12)
    ]
    if runs[0] != runs[1]:
        raise Broken("seed 11 twice gave different samples")
    if runs[0] == runs[2]:
        raise Broken("seeds 11 and 12 gave the same 4 samples")
    return "4 samples of seed 11 twice are equal, those of seed 12 are not"


@promise(
    "sample.max_tokens",
    "A sequence that nothing stops has max_tokens tokens and the reason length.",
    "stop=[] read as the default; a length that counts the prompt",
)
def most_tokens(server: Server) -> str:
    sampler = server.sampler(moved(server))
    for count in (1, 5):
        for one in drawn(server, sampler, 3, line(server), max_tokens=count, temperature=1.0, seed=13, stop=[]):
            if (len(one.tokens), one.stop_reason) != (count, "length"):
                raise Broken(f"max_tokens={count}, stop=[] gave {len(one.tokens)} tokens, reason {one.stop_reason!r}")
    return "1 and 5 tokens, reason length"


@promise(
    "sample.stop",
    "A stop token ends a sequence, is its last token, and the reason is stop.",
    "stop ids read as text; a stop token that is cut off",
)
def stops(server: Server) -> str:
    sampler, prompt = server.sampler(moved(server)), line(server)
    free = [int(token) for token in drawn(server, sampler, 1, prompt, max_tokens=6, temperature=0.0, stop=[])[0].tokens]
    expected = free[: free.index(free[3]) + 1]
    one = drawn(server, sampler, 1, prompt, max_tokens=6, temperature=0.0, stop=[free[3]])[0]
    if ([int(token) for token in one.tokens], one.stop_reason) != (expected, "stop"):
        raise Broken(
            f"stop=[{free[3]}] gave {[int(token) for token in one.tokens]}, reason {one.stop_reason!r}, not {expected}, 'stop'"
        )
    return f"stopped after {len(expected)} of {len(free)} tokens"
