"""Samples and logprobs through the door: Tinker's numbers, one failure alone, and samplers that travel between processes."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lossbook as lb
from lossbook.integrations import tinker
from lossbook.trainer.training.frozen_model import FrozenModel

PROMPT = tinker.ModelInput.from_ints([1, 2, 3, 4])
#: A little model's vocabulary, whole.
VOCABULARY = lb.ServiceClient(device="cpu").create_reference_client(base_model="tiny").vocab_size


def step(client: tinker.TrainingClient) -> None:
    data = [tinker.Datum(tinker.ModelInput.from_ints([1, 2, 3]), {"target_tokens": [2, 3, 4]})]
    client.forward_backward(data, "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()


@pytest.fixture
def sampler(training: tinker.TrainingClient) -> tinker.SamplingClient:
    step(training)
    return training.save_weights_and_get_sampling_client().result()


def distributions(sampler: tinker.SamplingClient, tokens: list[int]) -> torch.Tensor:
    """[N - 1, V] logprobs of every token in place of tokens 1 and on."""
    response = sampler.sample(
        tinker.ModelInput.from_ints(tokens),
        1,
        tinker.SamplingParams(max_tokens=1),
        include_prompt_logprobs=True,
        topk_prompt_logprobs=VOCABULARY,
    ).result()
    top = response.topk_prompt_logprobs_np
    assert top is not None
    rows = torch.full((len(tokens) - 1, VOCABULARY), float("nan"))
    return rows.scatter(1, torch.from_numpy(top.token_ids[1:]).long(), torch.from_numpy(top.logprobs[1:]))


@settings(max_examples=5, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.floats(0.25, 4), st.sampled_from([-1, 5]), st.sampled_from([1.0, 0.8]), st.integers(0, 99))
def test_a_samples_logprobs_are_log_softmax_of_logits_over_temperature(
    sampler: tinker.SamplingClient, temperature: float, top_k: int, top_p: float, seed: int
) -> None:
    params = tinker.SamplingParams(max_tokens=3, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=[])
    (sequence,) = sampler.sample(PROMPT, 1, params, topk_sample_logprobs=2).result().sequences
    logits = distributions(sampler, PROMPT.to_ints() + sequence.tokens)[
        -3:
    ]  # logprobs differ from logits by a constant
    scaled = (logits / temperature).log_softmax(1)
    expected = scaled.gather(1, torch.tensor(sequence.tokens)[:, None])[:, 0]
    assert sequence.logprobs == pytest.approx(expected.tolist(), abs=2e-5)
    likeliest = [[one[1] for one in pairs or []] for pairs in sequence.topk_logprobs or []]
    assert np.array(likeliest) == pytest.approx(scaled.topk(2).values.numpy(), abs=2e-5)


def test_what_is_asked_about_a_prompt_is_what_its_distributions_say(sampler: tinker.SamplingClient) -> None:
    tokens = PROMPT.to_ints()
    expected = distributions(sampler, tokens)
    own = [None, *expected.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()]
    targets = torch.tensor([[5, 6], [-1, 7], [-1, -1]])
    wanted = torch.where(targets < 0, 0, expected.gather(1, targets.clamp(min=0)))
    one = tinker.SamplingParams(max_tokens=1)

    response = sampler.sample(PROMPT, 1, one, True, 3, 0, tinker.TensorData.from_torch(targets), 0, 2).result()
    assert response.prompt_logprobs == pytest.approx([None, None, *own[2:]], abs=1e-5)
    assert response.topk_prompt_logprobs is not None
    assert response.topk_prompt_logprobs[:2] == [None, None]
    for row, pairs in zip(expected[1:], response.topk_prompt_logprobs[2:], strict=True):
        assert [token for token, _ in pairs or []] == row.topk(3).indices.tolist()
        assert [logprob for _, logprob in pairs or []] == pytest.approx(row.topk(3).values.tolist(), abs=1e-5)
    assert response.target_prompt_logprobs is not None
    assert torch.allclose(response.target_prompt_logprobs.to_torch(), wanted, atol=1e-5)

    many = torch.full((3, 9), -1)
    many[1, 4] = 7
    sparse = tinker.TensorData.from_torch_sparse(many, pad_value=-1)
    answer = sampler.sample(PROMPT, 1, one, target_prompt_logprobs=sparse).result().target_prompt_logprobs
    assert answer is not None
    assert (answer.sparse_crow_indices, answer.sparse_col_indices) == (
        sparse.sparse_crow_indices,
        sparse.sparse_col_indices,
    )
    assert answer.data == pytest.approx([float(expected[1, 7])], abs=1e-5)

    assert sampler.compute_logprobs(PROMPT).result() == pytest.approx(own, abs=1e-5)
    assert sampler.compute_logprobs(PROMPT, 1).result() == pytest.approx([None, None, None, own[3]], abs=1e-5)


def test_a_bad_prompt_among_many_fails_alone_and_the_others_are_as_alone(sampler: tinker.SamplingClient) -> None:
    def params(seed: int) -> tinker.SamplingParams:
        return tinker.SamplingParams(max_tokens=4, seed=seed, stop=[])

    prompts = [[1, 2, 3], [VOCABULARY, 1], [4], [5, 6]]
    futures = [sampler.sample(tinker.ModelInput.from_ints(prompt), 2, params(i)) for i, prompt in enumerate(prompts)]
    with pytest.raises(tinker.RequestFailedError, match=f"token {VOCABULARY} at position 0") as raised:
        futures[1].result()
    assert raised.value.category == tinker.types.RequestErrorCategory.User
    ids = set()
    for i in (0, 2, 3):
        together = futures[i].result().sequences
        alone = sampler.sample(tinker.ModelInput.from_ints(prompts[i]), 2, params(i)).result().sequences
        assert [one.tokens for one in together] == [one.tokens for one in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
        ids |= {one.sequence_id for one in (*together, *alone)}
    assert len(ids) == 12


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts each run of the sampler decoded together."""
    sizes: list[int] = []
    sample = FrozenModel.sample

    def counted(self: FrozenModel, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(prompts))
        return sample(self, prompts, *args, **kwargs)

    monkeypatch.setattr(FrozenModel, "sample", counted)
    return sizes


def test_samples_that_wait_run_together_and_one_that_is_cancelled_does_not_run(
    training: tinker.TrainingClient, sampler: tinker.SamplingClient, batches: list[int]
) -> None:
    turn = threading.Event()

    def waits(data: Any, rows: Any) -> Any:
        assert turn.wait(60)
        return -torch.cat(rows).sum(), {}

    async def main() -> None:
        data = [tinker.Datum(PROMPT, {"target_tokens": [2, 3, 4, 5]})]
        busy = training.forward_backward_custom(data, waits)  # whose turn does not end before all below are queued
        params = tinker.SamplingParams(max_tokens=2)
        tasks = [asyncio.create_task(sampler.sample_async(PROMPT, 1, params)) for _ in range(9)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        await asyncio.sleep(0)
        turn.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await busy
        assert [isinstance(one, asyncio.CancelledError) for one in outcomes] == [i == 4 for i in range(9)]

    asyncio.run(main())
    assert batches == [8]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        pytest.param(
            lambda s, p: s.sample(PROMPT, 1, p, prompt_alt_tokens_k=2), "topk_prompt_logprobs", id="drawn tokens"
        ),
        pytest.param(
            lambda s, p: s.sample(PROMPT, 1, p, prompt_logprobs_last_n=1), "include_prompt_logprobs", id="of none"
        ),
        pytest.param(lambda s, p: s.compute_logprobs(PROMPT, 0), "1 or more", id="the last 0"),
        pytest.param(lambda s, p: s.compute_logprobs(PROMPT, 4).result(), "1 to 3", id="more than there are"),
        pytest.param(
            lambda s, p: s.sample(tinker.ModelInput(chunks=[tinker.DmelChunk(dmel=b"")]), 1, p),
            "DmelChunk",
            id="speech",
        ),
        pytest.param(
            lambda s, p: s.sample(PROMPT, 1, p, target_prompt_logprobs=tinker.TensorData([1, 2], "int64")).result(),
            r"\[3\] or \[3, K\]",
            id="targets of another length",
        ),
        pytest.param(lambda s, p: tinker.SamplingClient.from_sampler_handle("bm8="), "no handle", id="no handle"),
    ],
)
def test_what_cannot_be_is_refused_by_name(standing: tinker.TrainingClient, call: Any, words: str) -> None:
    sampler = standing.save_weights_and_get_sampling_client()
    with pytest.raises((ValueError, TypeError, tinker.TinkerError), match=words):
        call(sampler, tinker.SamplingParams(max_tokens=1))
    assert len(sampler.sample(PROMPT, 1, tinker.SamplingParams(max_tokens=1)).result().sequences) == 1


def test_an_inflight_sampler_goes_over_to_later_weights_and_a_snapshot_does_not(
    training: tinker.TrainingClient,
) -> None:
    first = training.save_weights_and_get_sampling_client(kind="inflight").result()
    fixed = training.save_weights_and_get_sampling_client().result()
    before = fixed.compute_logprobs(PROMPT).result()
    assert first.compute_logprobs(PROMPT).result() == before
    step(training)
    with pytest.warns(DeprecationWarning, match="no effect"):
        second = training.save_weights_and_get_sampling_client("a name", kind="inflight").result()
    after = second.compute_logprobs(PROMPT).result()
    assert after != before
    assert first.compute_logprobs(PROMPT).result() == after
    assert fixed.compute_logprobs(PROMPT).result() == before


def test_a_sampler_of_the_weights_saved_last_shares_the_base_model_in_training(
    training: tinker.TrainingClient, service: tinker.ServiceClient
) -> None:
    paths, expected = [], []
    for name in ("first", "second"):
        step(training)
        paths.append(training.save_weights_for_sampler(name).result().path)
        expected.append(training.save_weights_and_get_sampling_client().compute_logprobs(PROMPT).result())
    step(training)
    first, second = (service.create_sampling_client(path).result() for path in paths)
    assert second.get_tokenizer() is training.get_tokenizer()
    assert first.get_tokenizer() is not training.get_tokenizer()  # loaded
    assert [one.compute_logprobs(PROMPT).result() for one in (first, second)] == expected
    service.create_rest_client().delete_checkpoint_from_tinker_path(paths[1]).result()
    with pytest.raises(tinker.TinkerError, match="there is no checkpoint"):
        service.create_sampling_client(paths[1]).result()


def test_samplers_of_one_base_model_share_its_weights(service: tinker.ServiceClient) -> None:
    one, other = (service.create_sampling_client(base_model="tiny").result() for _ in range(2))
    assert one.get_tokenizer() is other.get_tokenizer()
    assert one.compute_logprobs(PROMPT).result() == other.compute_logprobs(PROMPT).result()


# --- samplers in other places -----------------------------------------------------------------------------------------


def samplers(training: tinker.TrainingClient, service: tinker.ServiceClient) -> dict[str, tinker.SamplingClient]:
    """One of each origin; the snapshot's weights are those of before a step."""
    step(training)
    snapshot = training.save_weights_and_get_sampling_client().result()
    path = training.save_weights_for_sampler("a").result().path
    training.save_weights_for_sampler("b").result()
    step(training)
    return {
        "snapshot": snapshot,
        "saved": service.create_sampling_client(model_path=path).result(),
        "base model": service.create_sampling_client(base_model="tiny").result(),
        "a future": training.save_weights_and_get_sampling_client(),
    }


def test_a_pickled_sampler_finds_its_weights_again_in_the_same_process(
    training: tinker.TrainingClient, service: tinker.ServiceClient
) -> None:
    for sampler in samplers(training, service).values():
        expected = sampler.compute_logprobs(PROMPT).result()
        for again in (
            pickle.loads(pickle.dumps(sampler)),
            tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle(), api_key="tml-x"),
        ):
            assert type(again) is tinker.SamplingClient
            assert again.get_base_model() == "tiny"
            assert again.compute_logprobs(PROMPT).result() == expected
    (handed_over, *_) = service.create_rest_client().list_checkpoints(training.model_id).result().checkpoints
    assert handed_over.checkpoint_id.startswith("sampler_weights/handed-over-")
    assert handed_over.expires_at is not None


#: Run in another process and another folder: what each sampler says there.
ELSEWHERE = """
import json, pathlib, pickle, sys
from lossbook.integrations import tinker

prompt = tinker.ModelInput.from_ints([1, 2, 3, 4])
samplers = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
print(json.dumps({name: sampler.compute_logprobs(prompt).result() for name, sampler in samplers.items()}))
"""


@pytest.mark.slow
def test_a_pickled_sampler_loads_the_same_weights_in_another_process(
    training: tinker.TrainingClient, service: tinker.ServiceClient, tmp_path: Path
) -> None:
    every = samplers(training, service)
    pickled = tmp_path / "samplers"
    pickled.write_bytes(pickle.dumps(every))
    assert len(pickled.read_bytes()) < 10_000  # no weights in it
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(pickled)],
        cwd=tmp_path,
        env={**os.environ, "LOSSBOOK_TINKER_DEVICE": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    expected = {name: sampler.compute_logprobs(PROMPT).result() for name, sampler in every.items()}
    assert json.loads(done.stdout) == expected
    assert expected["snapshot"] != expected["a future"]
