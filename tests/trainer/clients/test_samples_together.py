"""Samples that wait together are drawn together: each is the one that its call alone would give, whatever waits beside it."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.datums.errors import LossbookError, ModelError, TokenRangeError
from lossbook.trainer.clients.futures import Worker
from lossbook.trainer.clients.sampling import SamplingClient
from lossbook.trainer.engine.settings import EngineSettings
from lossbook.trainer.model.load import load_model
from lossbook.trainer.model.snapshot import Snapshot
from lossbook.trainer.responses import SampleResponse, TopLogprobs
from lossbook.trainer.training.frozen_model import FrozenModel

PATIENCE = 120
PROMPT = [72, 101, 108, 108, 111, 44]


class Counted:
    """A frozen model that notes how many prompts were sampled together."""

    def __init__(self, frozen: FrozenModel) -> None:
        self._frozen = frozen
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._frozen, name)

    def sample(self, prompts: Sequence[list[int]], *arguments: Any, **options: Any) -> list[SampleResponse]:
        self.batches.append(len(prompts))
        return self._frozen.sample(prompts, *arguments, **options)


@functools.cache
def frozen() -> FrozenModel:
    """The tiny decoder in float64, with weights that make some tokens much likelier than others."""
    model = load_model("tiny", device="cpu", dtype=torch.float64)
    with torch.no_grad():
        model.head().weight.mul_(10)
    return FrozenModel(Snapshot(model, {}), EngineSettings())


def sampler(worker: Worker | None = None) -> tuple[SamplingClient, Counted]:
    counted = Counted(frozen())
    client: Any = counted
    return SamplingClient(worker or Worker(), client, "tiny/sampler"), counted


@contextmanager
def waiting(client: SamplingClient) -> Iterator[None]:
    """Inside, all calls wait; at the end they go."""
    begun, released = threading.Event(), threading.Event()

    def gate(_: Any) -> None:
        begun.set()
        assert released.wait(PATIENCE)

    held = client.in_turn("gate", gate)
    assert begun.wait(PATIENCE)
    yield
    released.set()
    held.result(PATIENCE)


PARAMS = st.builds(
    lb.SamplingParams,
    max_tokens=st.sampled_from([1, 4, 4, 7]),
    seed=st.integers(0, 3),
    stop=st.sampled_from([None, [], [], [10, 20, 30, 40, 50], ["e", "the"]]),
    temperature=st.sampled_from([0.0, 1.0, 1.0, 0.7]),
    top_k=st.sampled_from([-1, -1, 5]),
    top_p=st.sampled_from([1.0, 1.0, 0.8]),
)
CALLS = st.fixed_dictionaries(
    {
        "prompt": st.lists(st.integers(0, 255), min_size=1, max_size=12) | st.sampled_from([[], [1, 999]]),
        "num_samples": st.sampled_from([1, 1, 3]),
        "scaled_logprobs": st.booleans(),
        "topk_sample_logprobs": st.sampled_from([0, 0, 0, 2]),
        "include_prompt_logprobs": st.booleans(),
        "topk_prompt_logprobs": st.sampled_from([0, 0, 3]),
    }
)


@given(st.lists(PARAMS, min_size=1, max_size=2), st.data())
@settings(max_examples=8, deadline=None)
def test_each_call_gets_what_it_gets_alone(params: list[lb.SamplingParams], data: st.DataObject) -> None:
    check_calls(params, data)


@pytest.mark.slow
@given(st.lists(PARAMS, min_size=1, max_size=2), st.data())
@settings(max_examples=60, deadline=None)
def test_each_of_many_calls_gets_what_it_gets_alone(params: list[lb.SamplingParams], data: st.DataObject) -> None:
    check_calls(params, data)


def check_calls(params: list[lb.SamplingParams], data: st.DataObject) -> None:
    calls = [
        {**call, "sampling_params": data.draw(st.sampled_from(params))}
        for call in data.draw(st.lists(CALLS, max_size=6))
    ]
    withdrawn = data.draw(st.sets(st.integers(0, 5), max_size=2))
    client, _ = sampler()
    with waiting(client):
        futures = [client.sample(**call) for call in calls]
        for i in withdrawn & set(range(len(futures))):
            assert futures[i].cancel()
    together = [None if i in withdrawn else outcome(future) for i, future in enumerate(futures)]
    alone, _ = sampler(Worker(joins=False))
    for i, call in enumerate(calls):
        if i not in withdrawn:
            same(together[i], outcome(alone.sample(**call)))


def outcome(future: lb.Future[SampleResponse]) -> SampleResponse | tuple[type, str]:
    try:
        return future.result(PATIENCE)
    except LossbookError as error:
        return type(error), str(error)


def same(one: Any, other: Any) -> None:
    """Tokens and the like are equal, numbers up to rounding in float64; float32 numbers of prompts are equal bit for bit."""
    if isinstance(one, tuple) or isinstance(other, tuple):
        assert one == other
        return
    assert one.prompt_logprobs == other.prompt_logprobs
    close(one.topk_prompt_logprobs, other.topk_prompt_logprobs)
    assert len(one.sequences) == len(other.sequences)
    for mine, theirs in zip(one.sequences, other.sequences, strict=True):
        assert (mine.tokens, mine.stop_reason) == (theirs.tokens, theirs.stop_reason)
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-12)
        close(mine.topk_logprobs, theirs.topk_logprobs)


def close(one: TopLogprobs | None, other: TopLogprobs | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert np.array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-6)


def test_waiting_calls_are_decoded_in_one_batch_whatever_their_seeds_and_what_is_asked_about_their_prompts() -> None:
    client, counted = sampler()
    params = [lb.SamplingParams(max_tokens=6, seed=seed, temperature=50.0, stop=[]) for seed in (0, 1, None, None)]
    with waiting(client):
        futures = [client.sample([1, 2, 3], 2, one) for one in params]
        futures.append(client.sample([4], 2, params[0], include_prompt_logprobs=True))
        futures.append(client.sample([1, 2, 3], 1, params[0]))
    responses = [future.result(PATIENCE) for future in futures]
    assert counted.batches == [5, 1]
    tokens = [[one.tokens for one in response.sequences] for response in responses]
    assert tokens[2] != tokens[3], "calls without a seed differ"
    ids = [one.sequence_id for response in responses for one in response.sequences]
    assert len(set(ids)) == len(ids) == 11


def test_a_batch_holds_as_many_rows_as_are_decoded_together() -> None:
    client, counted = sampler()
    with waiting(client):
        futures = [client.sample([i], 16, lb.SamplingParams(max_tokens=1)) for i in range(9)]
    assert all(len(future.result(PATIENCE).sequences) == 16 for future in futures)
    assert counted.batches == [4, 4, 1]


def test_a_bad_prompt_fails_alone_and_the_others_still_run_together() -> None:
    client, counted = sampler()
    with waiting(client):
        good = [client.sample([i], 1, lb.SamplingParams(max_tokens=2)) for i in (1, 2)]
        bad = client.sample([1, 999], 1, lb.SamplingParams(max_tokens=2))
        after = client.sample([3], 1, lb.SamplingParams(max_tokens=2))
    assert all(len(one.result(PATIENCE).sequences) == 1 for one in (*good, after))
    with pytest.raises(TokenRangeError, match="the prompt has token 999 at position 1"):
        bad.result(PATIENCE)
    assert counted.batches == [3, 1]


def test_one_that_fails_while_it_is_decoded_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    client, counted = sampler()
    decode = counted.sample

    def failing(prompts: Sequence[list[int]], *arguments: Any, **options: Any) -> list[SampleResponse]:
        responses = decode(prompts, *arguments, **options)
        if [7] in prompts:
            raise ModelError("tiny gave NaN logits")
        return responses

    monkeypatch.setattr(counted, "sample", failing)
    with waiting(client):
        futures = [client.sample([i], 1, lb.SamplingParams(max_tokens=1)) for i in (6, 7, 8)]
    for future in (futures[0], futures[2]):
        assert future.result(PATIENCE).sequences
    with pytest.raises(ModelError, match="NaN"):
        futures[1].result(PATIENCE)
    assert counted.batches == [3, 1, 1, 1]


def test_with_deterministic_settings_each_call_runs_alone(tmp_path: Any) -> None:
    service = lb.ServiceClient(device="cpu", deterministic=True, checkpoint_dir=tmp_path)
    assert not service.context.worker.joins
    client, counted = sampler(Worker(joins=False))
    with waiting(client):
        futures = [client.sample([1], 1, lb.SamplingParams(max_tokens=1)) for _ in range(3)]
    assert [len(future.result(PATIENCE).sequences) for future in futures] == [1, 1, 1]
    assert counted.batches == [1, 1, 1]


def test_a_call_with_progress_runs_alone_and_sees_its_own_tokens() -> None:
    client, counted = sampler()
    seen: list[int] = []
    with waiting(client):
        futures = [client.sample([1], 1, lb.SamplingParams(max_tokens=2, stop=[])) for _ in range(2)]
        params = lb.SamplingParams(max_tokens=2, stop=[])
        futures.append(client.sample([1], 1, params, on_progress=lambda progress: seen.append(progress.tokens)))
    assert all(future.result(PATIENCE) for future in futures)
    assert counted.batches == [2, 1]
    assert seen == [1, 2]


def test_a_cancelled_await_of_a_twin_withdraws_the_call() -> None:
    client, counted = sampler()
    params = lb.SamplingParams(max_tokens=1)

    async def two() -> SampleResponse:
        with waiting(client):
            kept, dropped = (asyncio.create_task(client.sample_async([1], 1, params)) for _ in range(2))
            await asyncio.sleep(0)  # both are queued
            dropped.cancel()
            await asyncio.wait([dropped])
            assert dropped.cancelled()
        return await kept

    assert len(asyncio.run(two()).sequences) == 1
    assert counted.batches == [1]


@pytest.mark.parametrize("temperature", [0.5, 3.0, 1e-3])
def test_scaled_logprobs_are_those_of_the_distribution_at_the_sampling_temperature(temperature: float) -> None:
    client, _ = sampler()
    params = lb.SamplingParams(max_tokens=5, seed=3, temperature=temperature, top_k=7, top_p=0.9, stop=[])
    (scaled,) = client.sample(PROMPT, 1, params, scaled_logprobs=True, topk_sample_logprobs=4).result().sequences
    (plain,) = client.sample(PROMPT, 1, params, topk_sample_logprobs=4).result().sequences
    assert scaled.tokens == plain.tokens
    with torch.no_grad():
        tokens = torch.tensor([PROMPT + scaled.tokens])
        logits = frozen().model.module(tokens).logits[0, len(PROMPT) - 1 : -1]
    for sequence, divisor in ((scaled, temperature), (plain, 1.0)):
        own = (logits / divisor).log_softmax(1)
        expected = own.gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
        assert sequence.logprobs == pytest.approx(expected.tolist(), abs=1e-9)
        top = sequence.topk_logprobs
        assert top is not None
        values, ids = own.topk(4, dim=1)
        assert np.array_equal(top.tokens, ids.numpy())
        np.testing.assert_allclose(top.logprobs, values.numpy(), rtol=1e-5, atol=1e-5)


def test_greedy_logprobs_are_of_the_model_itself_scaled_or_not() -> None:
    client, _ = sampler()
    params = lb.SamplingParams(max_tokens=3, temperature=0.0)
    assert client.sample(PROMPT, 1, params, scaled_logprobs=True).result() == client.sample(PROMPT, 1, params).result()


def test_a_batch_names_likeliest_tokens_too_and_identifies_its_sequences() -> None:
    client, _ = sampler()
    params = lb.SamplingParams(max_tokens=3, seed=0, temperature=0.6)
    options: Any = {"topk_sample_logprobs": 3, "scaled_logprobs": True}
    batch = client.sample_batch([PROMPT, [1]], params, num_samples=2, **options).result()
    for prompt, response in zip([PROMPT, [1]], batch, strict=True):
        same(response, client.sample(prompt, 2, params, **options).result())
    ids = [one.sequence_id for response in batch for one in response.sequences]
    assert len(set(ids)) == 4
    assert all(ids)


@pytest.mark.parametrize("k", [-1, 261, 1.5, True])
def test_an_impossible_number_of_likeliest_tokens_is_refused(k: Any) -> None:
    client, _ = sampler()
    for name in ("topk_sample_logprobs", "topk_prompt_logprobs"):
        with pytest.raises(ModelError, match=rf"{name} must be 0 \(none\) to 260"):
            client.sample(PROMPT, 1, lb.SamplingParams(max_tokens=1), **{name: k}).result()


def test_logprobs_of_the_end_of_a_prompt_are_those_of_all_of_it() -> None:
    client, _ = sampler()
    whole = client.compute_logprobs(PROMPT).result()
    end = client.compute_logprobs(PROMPT, prompt_logprobs_last_n=2).result()
    assert end[:4] == [None] * 4
    assert end[4:] == pytest.approx(whole[4:], abs=1e-5)
    params = lb.SamplingParams(max_tokens=1)
    for targets in (np.array([[1, 2]] * 5), lb.TensorData([7, -1, -1, -1, 9], "int64", [5])):
        response = client.sample(PROMPT, 1, params, target_prompt_logprobs=targets).result()
        assert response.prompt_logprobs is None
        assert response.target_prompt_logprobs is not None
        assert response.target_prompt_logprobs.shape == list(targets.shape)
