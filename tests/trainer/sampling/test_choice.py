"""Choosing tokens in blocks gives what one running sum over the whole vocabulary gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.trainer.sampling import choice as token_choice
from lossbook.trainer.sampling.choice import choose, choose_unread, likeliest
from lossbook.trainer.sampling.params import Rules, SampledLogprobs

Choose = Callable[[Tensor, Rules, Tensor | None], tuple[Tensor, Tensor]]


def rules(temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0) -> Rules:
    return Rules(temperature, top_k, top_p, None, None, frozenset(), ())


def simple(logits: Tensor, rules: Rules, uniforms: Tensor) -> Tensor:
    """The slow twin: everything in float64, one running sum over the sorted or unsorted vocabulary."""
    vocabulary = logits.shape[1]
    values, ids = logits.double(), torch.arange(vocabulary).expand(logits.shape)
    if 0 < rules.top_k < vocabulary or rules.top_p < 1:
        values, ids = values.topk(min(rules.top_k, vocabulary) if rules.top_k > 0 else vocabulary, dim=1)
    probabilities = (values / rules.temperature).softmax(1)
    if rules.top_p < 1:
        probabilities = probabilities.where(probabilities.cumsum(1) - probabilities < rules.top_p, 0.0)
    gathered = probabilities.cumsum(1)
    return ids.gather(1, torch.searchsorted(gathered, uniforms[:, None] * gathered[:, -1:], right=True))[:, 0]


both = pytest.mark.parametrize("choose", [choose, choose_unread], ids=["a CPU's", "a GPU's"])


@both
@pytest.mark.parametrize("vocabulary", [3, 256, 257, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(-1, 1.0), (7, 1.0), (-1, 0.5), (-1, 0.999), (50, 0.9), (10**6, 1.0)])
def test_tokens_and_logprobs_are_those_of_the_simple_algorithm(
    vocabulary: int, temperature: float, top_k: int, top_p: float, choose: Choose
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(500, vocabulary, generator=generator)
    uniforms = torch.rand(500, generator=generator, dtype=torch.float64)
    asked = rules(temperature, top_k, top_p)
    before = logits.clone()
    chosen, logprobs = choose(logits, asked, uniforms)
    agree = (chosen == simple(logits, asked, uniforms)).float().mean()
    assert agree >= 0.998, "a number within rounding of a boundary may fall to the neighbour"
    expected = logits.double().log_softmax(1).gather(1, chosen[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=3e-6)
    assert torch.equal(logits, before)


@both
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([3, 300, 700]),
    st.sampled_from([rules(), rules(0.5), rules(top_k=5), rules(top_p=0.7), rules(top_p=0.9999)]),
    st.sampled_from([0.0, 1e-12, 0.5, 1 - 2**-53]),
)
@settings(max_examples=150, deadline=None)
def test_a_token_of_probability_zero_is_never_drawn(
    choose: Choose, seed: int, vocabulary: int, asked: Rules, uniform: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(4, vocabulary, generator=generator)
    possible = torch.rand(4, vocabulary, generator=generator) < 0.02
    possible[torch.arange(4), torch.randint(0, vocabulary, (4,), generator=generator)] = True
    logits[~possible] = -math.inf
    chosen, logprobs = choose(logits, asked, torch.full((4,), uniform, dtype=torch.float64))
    assert possible.gather(1, chosen[:, None]).all()
    assert torch.isfinite(logprobs).all()


def test_where_the_likeliest_tokens_do_not_hold_top_p_all_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_choice, "LIKELIEST", 10)
    flat = torch.zeros(1, 1000) - torch.arange(1000) * 1e-6
    chosen, _ = choose(flat, rules(top_p=0.95), torch.tensor([0.999], dtype=torch.float64))
    assert 940 <= int(chosen) < 950


@both
def test_rows_do_not_depend_on_each_other(choose: Choose) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniforms = (
        torch.randn(9, 1000, generator=generator),
        torch.rand(9, generator=generator, dtype=torch.float64),
    )
    for asked in (rules(), rules(top_p=0.8), rules(top_k=4)):
        together, _ = choose(logits, asked, uniforms)
        for row in range(9):
            assert choose(logits[row : row + 1], asked, uniforms[row : row + 1])[0] == together[row]


@both
@pytest.mark.parametrize("asked", [rules(), rules(0.5), rules(top_p=0.5), rules(top_k=2)])
def test_nan_logits_give_a_nan_logprob_for_the_caller_to_report(asked: Rules, choose: Choose) -> None:
    _, logprobs = choose(torch.full((2, 600), math.nan), asked, torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert torch.isnan(logprobs).all()


@both
@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0, 1e-4, 1e-35])
@pytest.mark.parametrize(("top_k", "top_p"), [(-1, 1.0), (7, 0.9)])
def test_scaled_logprobs_are_those_at_the_temperature_over_the_whole_vocabulary(
    temperature: float, top_k: int, top_p: float, choose: Choose
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100, 500, generator=generator)
    uniforms = torch.rand(100, generator=generator, dtype=torch.float64)
    asked = replace(rules(temperature, top_k, top_p), said=SampledLogprobs(scaled=True, topk=5))
    chosen, logprobs = choose(logits, asked, uniforms)
    assert torch.equal(chosen, choose(logits, rules(temperature, top_k, top_p), uniforms)[0])
    own = ((logits - logits.amax(1, keepdim=True)).double() / max(temperature, 1e-30)).log_softmax(1)
    torch.testing.assert_close(logprobs.double(), own.gather(1, chosen[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    top = likeliest(logits, asked)
    assert top is not None
    values, ids = own.topk(5, dim=1)
    torch.testing.assert_close(top[1].double(), values, rtol=1e-5, atol=1e-5)
    assert torch.equal(top[0], ids)
    assert likeliest(logits, rules(temperature)) is None
