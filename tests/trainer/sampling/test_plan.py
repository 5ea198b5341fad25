"""Samples of every kind of model are those of decoding without a cache: states, hybrids, sinks, and across a length switch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook.datums.types import SamplingParams
from lossbook.trainer.clients.futures import Worker
from lossbook.trainer.clients.sampling import SamplingClient
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.lengths import switch_length
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.model.snapshot import Snapshot
from lossbook.trainer.packing.probes import verdict
from lossbook.trainer.sampling.generate import generate_batch
from lossbook.trainer.sampling.plan import plan_of
from lossbook.trainer.training.frozen_model import FrozenModel

from ..kinds import KINDS, LINEAR, SIZES, STATE, model_of, own_logprobs

MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
MORE: dict[str, Any] = {
    **KINDS,
    "Qwen3.5": lambda: transformers.Qwen3_5TextConfig(**LINEAR),
    "Mamba-2": lambda: transformers.Mamba2Config(**STATE, num_heads=8, head_dim=8, n_groups=1),
    "Falcon-Mamba": lambda: transformers.FalconMambaConfig(**STATE),
    "Falcon-H1": lambda: transformers.FalconH1Config(**SIZES, **MAMBA2, mamba_d_ssm=64),
    "LFM2": lambda: transformers.Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]),
    "Bamba": lambda: transformers.BambaConfig(**SIZES, **MAMBA2, attn_layer_indices=[1]),
    "Jamba": lambda: transformers.JambaConfig(
        **SIZES, attn_layer_offset=1, attn_layer_period=2, num_experts=2, mamba_d_state=8, mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "RWKV": lambda: transformers.RwkvConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, context_length=128),
}  # fmt: skip
_SLOW = ("tokens chosen by score", "Qwen3.5", "Mamba-2", "Falcon-H1", "Bamba", "Jamba")
#: Every kind, the expensive ones among the slow tests.
KINDS_BY_COST = [pytest.param(kind, marks=pytest.mark.slow if kind in _SLOW else ()) for kind in MORE]
LONGROPE = "a rotation that switches at 32 tokens"
PROMPTS = [[5, 9, 2, 40, 41, 7, 8, 3], [11, 12, 13], [1, 90, 30, 31, 32, 60, 61, 62]]


@pytest.fixture(scope="module")
def models() -> dict[str, LoadedModel]:
    return {kind: model_of(config(), seed=1) for kind, config in MORE.items()}


@pytest.mark.parametrize("kind", KINDS_BY_COST)
@torch.no_grad()
def test_samples_of_a_batch_have_the_logprobs_of_a_forward_over_the_tokens_before_them(
    models: dict[str, LoadedModel], kind: str
) -> None:
    model = models[kind]
    params = SamplingParams(max_tokens=30 if kind == LONGROPE else 8, temperature=1.0, seed=3, stop=[])
    for samples in (1, 2):
        groups = generate_batch(model, PROMPTS, num_samples=samples, params=params)
        for prompt, group in zip(PROMPTS, groups, strict=True):
            assert len(group) == samples
            for sample in group:
                for i, (token, logprob) in enumerate(zip(sample.tokens, sample.logprobs, strict=True)):
                    own = own_logprobs(model, [*prompt, *sample.tokens[:i]])[-1]
                    assert logprob == pytest.approx(float(own[token]), abs=1e-4)


@torch.no_grad()
def test_greedy_tokens_across_a_length_switch_are_those_of_generate(models: dict[str, LoadedModel]) -> None:
    model = models[LONGROPE]
    prompt = [(i * 7) % 96 for i in range(24)]
    (sample,) = generate_batch(model, [prompt], params=SamplingParams(max_tokens=24, temperature=0.0, stop=[]))[0]
    theirs = model.module.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)  # type: ignore[operator]
    assert sample.tokens == theirs[0, len(prompt) :].tolist()


CACHED = ["Qwen3.5", "a state in some layers", "a state along the row", "LFM2", "Bamba", "Falcon-H1", "Jamba", LONGROPE]


@pytest.mark.parametrize("kind", CACHED)
def test_these_are_decoded_with_a_cache(models: dict[str, LoadedModel], kind: str) -> None:
    assert plan_of(models[kind]).cached


@pytest.mark.parametrize("kind", KINDS_BY_COST)
@settings(max_examples=2)
@given(data=st.data())
def test_a_sample_does_not_depend_on_its_batch(models: dict[str, LoadedModel], kind: str, data: st.DataObject) -> None:
    check_samples(models[kind], data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE)
@settings(max_examples=10)
@given(data=st.data())
def test_none_of_many_samples_depends_on_its_batch(
    models: dict[str, LoadedModel], kind: str, data: st.DataObject
) -> None:
    check_samples(models[kind], data)


@torch.no_grad()
def check_samples(model: LoadedModel, data: st.DataObject) -> None:
    """Samples are those of each prompt alone, and their logprobs those of a forward and of `compute_logprobs`.

    Prompts lie on both sides of a switch at 32 tokens, of windows and chunks of 32 and 40, and of chunks of a state of 64.
    """
    shared = data.draw(st.sampled_from([0, 20]))
    lengths = data.draw(st.lists(st.sampled_from([1, 3, 22, 30, 33, 39, 66]), min_size=1, max_size=3))
    prompts = [[(7 * i + 3 + (i >= shared) * n) % 96 for i in range(length)] for n, length in enumerate(lengths)]
    samples, tokens, seed = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**31)))
    params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=seed, stop=[])
    together = generate_batch(model, prompts, num_samples=samples, params=params)
    client = SamplingClient(Worker(), FrozenModel(Snapshot(model, {}), EngineSettings()), "sampler")
    for prompt, group in zip(prompts, together, strict=True):
        (alone,) = generate_batch(model, [prompt], num_samples=samples, params=params)
        for ours, other in zip(group, alone, strict=True):
            assert ours.tokens == other.tokens
            assert ours.logprobs == pytest.approx(other.logprobs, abs=1e-4)
            # Beyond a switch, and where tokens are chosen by score, a longer row gives its first tokens other logprobs.
            ends = [len(prompt) + i + 1 for i in range(len(ours.tokens))]
            apart = switch_length(model) is not None or not verdict(model, "cut")
            row = [*prompt, *ours.tokens]
            rows = [row[:end] for end in ends] if apart else [row]
            computed = [client.compute_logprobs(each).result() for each in rows]
            expected = [c[-1] for c in computed] if apart else computed[0][len(prompt) :]
            assert ours.logprobs == pytest.approx(expected, abs=1e-4)
            owns = [
                own_logprobs(model, row[: end - 1])[-1, row[end - 1]].item() for end in (ends if apart else ends[-1:])
            ]
            assert ours.logprobs[-len(owns) :] == pytest.approx(owns, abs=1e-4)
