"""Sampling: its logprobs are the trainer's, its weights stay those of one moment, and training does not notice it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.datums.errors import CheckpointError, ModelError, TokenRangeError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.sampling.decode import Progress

MakeDatums = Callable[..., list[lb.Datum]]
StateOf = Callable[[TrainingClient], dict[str, Any]]
PROMPT = [72, 101, 108, 108, 111, 44]
SEEDED = lb.SamplingParams(max_tokens=8, seed=0)


def move(client: TrainingClient, datums: list[lb.Datum], steps: int = 2) -> None:
    """A few steps, large enough to change logprobs."""
    for _ in range(steps):
        client.forward_backward(datums, "cross_entropy").result()
        client.optim_step(lb.AdamParams(learning_rate=1e-2)).result()


def trajectories(sequences: list[Any]) -> list[lb.Datum]:
    return lb.datums_from_trajectories(
        [
            lb.Trajectory(
                prompt_tokens=PROMPT, response_tokens=s.tokens, sampling_logprobs=s.logprobs, advantages=float(i) - 1.5
            )
            for i, s in enumerate(sequences)
        ]
    )


@pytest.fixture(params=["LoRA", "all weights"])
def moved(request: pytest.FixtureRequest, service: lb.ServiceClient, make_datums: MakeDatums) -> TrainingClient:
    """A client some steps away from its base model."""
    if request.param == "LoRA":
        client = service.create_lora_training_client("tiny", rank=4, seed=0)
    else:
        client = service.create_training_client("tiny")
    move(client, make_datums(3))
    return client


def test_sampled_logprobs_are_those_of_the_trainer_and_of_compute_logprobs(moved: TrainingClient) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    sampled = sampler.sample(PROMPT, num_samples=4, sampling_params=SEEDED).result().sequences
    outputs = moved.forward(trajectories(sampled), "cross_entropy").result().loss_fn_outputs
    for sequence, output in zip(sampled, outputs, strict=True):
        count = len(sequence.tokens)
        assert output["logprobs"].data[-count:] == pytest.approx(sequence.logprobs, abs=1e-5)
        computed = sampler.compute_logprobs(PROMPT + sequence.tokens).result()
        assert computed[0] is None
        assert computed[-count:] == pytest.approx(sequence.logprobs, abs=1e-5)


def test_on_policy_samples_have_an_importance_ratio_of_one(moved: TrainingClient) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    sampled = sampler.sample(PROMPT, num_samples=4, sampling_params=SEEDED).result().sequences
    metrics = moved.forward_backward(trajectories(sampled), "importance_sampling").result().metrics
    assert metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["sampling_kl_k1"] == pytest.approx(0.0, abs=1e-5)


def test_logprobs_belong_to_the_untempered_model(moved: TrainingClient) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    params = lb.SamplingParams(max_tokens=6, seed=1, temperature=0.5, top_p=0.9, top_k=20)
    (sequence,) = sampler.sample(PROMPT, sampling_params=params).result().sequences
    computed = sampler.compute_logprobs(PROMPT + sequence.tokens).result()
    assert computed[-len(sequence.tokens) :] == pytest.approx(sequence.logprobs, abs=1e-5)


def test_a_sampler_does_not_follow_later_training(moved: TrainingClient, make_datums: MakeDatums) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    before = sampler.sample(PROMPT, num_samples=2, sampling_params=SEEDED).result()
    logprobs = sampler.compute_logprobs(PROMPT).result()
    move(moved, make_datums(3, seed=5))
    assert sampler.sample(PROMPT, num_samples=2, sampling_params=SEEDED).result() == before
    assert sampler.compute_logprobs(PROMPT).result() == logprobs
    assert moved.save_weights_and_get_sampling_client().compute_logprobs(PROMPT).result() != logprobs


def test_a_reference_client_is_frozen(moved: TrainingClient, make_datums: MakeDatums) -> None:
    datums = make_datums(3)
    reference = moved.create_reference_client()
    now = moved.forward(datums).result().loss_fn_outputs
    assert reference.forward(datums).result().loss_fn_outputs == now
    move(moved, datums)
    assert reference.forward(datums).result().loss_fn_outputs == now
    assert moved.forward(datums).result().loss_fn_outputs != now


def test_sampling_and_references_leave_training_as_it_was(
    moved: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    datums = make_datums(3)
    moved.forward_backward(datums, "cross_entropy").result()
    before = state_of(moved)
    sampler = moved.save_weights_and_get_sampling_client()
    sampler.sample(PROMPT, num_samples=2, sampling_params=SEEDED).result()
    sampler.compute_logprobs(PROMPT).result()
    moved.create_reference_client().forward(datums).result()
    assert state_of(moved) == before


def test_weights_come_back_when_sampling_fails(
    moved: TrainingClient, make_datums: MakeDatums, state_of: StateOf
) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    move(moved, make_datums(3, seed=5))
    before = state_of(moved)
    with pytest.raises(TokenRangeError):
        sampler.compute_logprobs([1, 999]).result()
    with pytest.raises(TokenRangeError):
        sampler.sample([1, 999], sampling_params=SEEDED).result()
    assert state_of(moved) == before


def test_saved_weights_sample_as_those_in_memory_do(service: lb.ServiceClient, moved: TrainingClient) -> None:
    expected = moved.save_weights_and_get_sampling_client("saved").sample(PROMPT, 2, SEEDED).result()
    path = str(service.checkpoint_dir / "sampler_weights" / "saved")
    assert moved.create_sampling_client(path).sample(PROMPT, 2, SEEDED).result() == expected
    assert (
        lb.ServiceClient(device="cpu").create_sampling_client(model_path=path).sample(PROMPT, 2, SEEDED).result()
        == expected
    )


def test_a_whole_training_state_can_be_sampled_from_too(service: lb.ServiceClient, moved: TrainingClient) -> None:
    expected = moved.save_weights_and_get_sampling_client().compute_logprobs(PROMPT).result()
    path = moved.save_state("whole").result().path
    assert service.create_sampling_client(model_path=path).compute_logprobs(PROMPT).result() == expected


def test_a_base_model_can_be_sampled_from_as_it_is(service: lb.ServiceClient) -> None:
    base = service.create_sampling_client(base_model="tiny")
    untrained = service.create_training_client("tiny").save_weights_and_get_sampling_client()
    assert base.sample(PROMPT, 2, SEEDED).result() == untrained.sample(PROMPT, 2, SEEDED).result()


def test_saved_weights_of_another_base_model_are_refused(service: lb.ServiceClient, training: TrainingClient) -> None:
    path = training.save_weights_for_sampler("weights").result().path
    with pytest.raises(CheckpointError, match="was saved from 'tiny', not from 'tiny-encoder'"):
        service.create_sampling_client(model_path=path, base_model="tiny-encoder")
    with pytest.raises(ModelError, match="needs model_path or base_model"):
        service.create_sampling_client()


def test_a_seed_fixes_the_samples_and_leaves_the_global_random_state_alone(training: TrainingClient) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    state = torch.get_rng_state()
    first = sampler.sample(PROMPT, 3, SEEDED).result()
    assert torch.equal(torch.get_rng_state(), state)
    assert sampler.sample(PROMPT, 3, SEEDED).result() == first
    assert sampler.sample(PROMPT, 3, lb.SamplingParams(max_tokens=8, seed=1)).result() != first
    assert len({tuple(s.tokens) for s in first.sequences}) == 3, "samples of one call differ"


def test_a_batch_of_prompts_gets_what_each_prompt_alone_gets(moved: TrainingClient) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    greedy = lb.SamplingParams(max_tokens=6, temperature=0.0)
    prompts = [PROMPT, [1, 2, 3], [9] * 11]
    together = sampler.sample_batch(prompts, greedy).result()
    for prompt, response in zip(prompts, together, strict=True):
        (alone,) = sampler.sample(prompt, sampling_params=greedy).result().sequences
        (sequence,) = response.sequences
        assert sequence.tokens == alone.tokens
        assert sequence.logprobs == pytest.approx(alone.logprobs, abs=1e-5)


def test_several_prompts_get_several_samples_each_in_one_call(moved: TrainingClient) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    prompts = [PROMPT, [1, 2, 3], [9] * 11]
    for prompt, response in zip(prompts, sampler.sample_batch(prompts, SEEDED, num_samples=3).result(), strict=True):
        alone = sampler.sample(prompt, 3, SEEDED).result()
        assert [s.tokens for s in response.sequences] == [s.tokens for s in alone.sequences]
        assert len(response.sequences) == 3


@pytest.mark.parametrize("tokens", [8, 40], ids=["weights as they are", "prepacked weights"])
def test_an_error_in_on_progress_ends_the_call_and_leaves_everything_as_it_was(
    moved: TrainingClient, make_datums: MakeDatums, state_of: StateOf, tokens: int
) -> None:
    sampler = moved.save_weights_and_get_sampling_client()
    move(moved, make_datums(3, seed=5))
    before = state_of(moved)

    def interrupt(progress: Progress) -> None:
        if progress.tokens >= 8:
            raise KeyError("enough")

    params = lb.SamplingParams(max_tokens=tokens, seed=0, stop=[])
    with pytest.raises(KeyError, match="enough"):
        sampler.sample_batch([PROMPT, [1]], params, num_samples=2, on_progress=interrupt).result()
    assert state_of(moved) == before
    assert len(sampler.sample(PROMPT, 2, params).result().sequences) == 2


def test_prompt_logprobs_come_when_asked_for(training: TrainingClient) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    assert sampler.sample(PROMPT, sampling_params=SEEDED).result().prompt_logprobs is None
    response = sampler.sample(PROMPT, sampling_params=SEEDED, include_prompt_logprobs=True).result()
    assert response.prompt_logprobs == sampler.compute_logprobs(PROMPT).result()
    assert response.prompt_logprobs[0] is None
    assert all(value is not None and value < 0 for value in response.prompt_logprobs[1:])


def test_the_first_token_has_no_logprob_and_an_empty_prompt_is_refused(training: TrainingClient) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    assert sampler.compute_logprobs([65]).result() == [None]
    with pytest.raises(TokenRangeError, match="at least one token"):
        sampler.compute_logprobs([]).result()


def test_logprobs_beyond_the_context_are_refused_as_in_training(training: TrainingClient) -> None:
    sampler = training.save_weights_and_get_sampling_client()  # its model reads 4,096 tokens at most

    def datum(length: int) -> lb.Datum:
        return lb.datum_from_tokens_weights([65] * length, [1.0] * length)

    assert len(sampler.compute_logprobs([65] * 4097).result()) == 4097  # the last token is not read
    assert len(training.forward([datum(4097)]).result().loss_fn_outputs[0]["logprobs"].data) == 4096
    for length in (4098, 4200):
        with pytest.raises(ModelError, match=f"the prompt has {length} tokens, but tiny reads at most 4096"):
            sampler.compute_logprobs([65] * length).result()
        with pytest.raises(ModelError, match=f"has {length - 1} tokens, but tiny reads at most 4096"):
            training.forward([datum(length)]).result()


@pytest.mark.parametrize("params", [{"max_tokens": 3}, 3, "greedy", [1], object()], ids=lambda p: type(p).__name__)
def test_parameters_that_are_no_sampling_params_are_refused_in_one_line(training: TrainingClient, params: Any) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    with pytest.raises(
        ModelError, match=r"^sampling_params must be a SamplingParams, not an? \w+ without .*$"
    ) as error:
        sampler.sample(PROMPT, 1, params).result()
    assert ("SamplingParams(**params)" in str(error.value)) == isinstance(params, dict)


@pytest.mark.slow
def test_the_probabilities_of_all_next_tokens_add_up_to_one(training: TrainingClient) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    calls = [sampler.compute_logprobs([65, token]) for token in range(260)]
    logprobs = torch.tensor([call.result()[1] for call in calls])
    assert logprobs.exp().sum() == pytest.approx(1.0, abs=1e-4)


def test_an_encoder_cannot_be_sampled_from(service: lb.ServiceClient) -> None:
    sampler = service.create_training_client("tiny-encoder").save_weights_and_get_sampling_client()
    with pytest.raises(ModelError, match="encoder"):
        sampler.sample(PROMPT, sampling_params=SEEDED).result()
    with pytest.raises(ModelError, match="encoder"):
        sampler.compute_logprobs(PROMPT).result()


def test_a_snapshot_has_the_weights_of_its_turn_and_can_be_saved_after_training_moved_on(
    service: lb.ServiceClient, make_datums: MakeDatums
) -> None:
    client = service.create_lora_training_client("tiny", rank=2, seed=0)
    move(client, make_datums(2))
    expected = client.save_weights_and_get_sampling_client().compute_logprobs(PROMPT).result()
    future = client.snapshot()  # not waited for
    move(client, make_datums(2))
    snapshot = future.result()
    assert snapshot.compute_logprobs(PROMPT).result() == expected
    root = service.checkpoint_dir.absolute()
    path = snapshot.in_turn("save", lambda frozen: frozen.save_weights(root, "earlier", overwrite=False)).result()
    assert service.create_sampling_client(model_path=str(path)).compute_logprobs(PROMPT).result() == expected
    assert client.snapshot().result().compute_logprobs(PROMPT).result() != expected


def test_a_call_of_ones_own_runs_in_its_turn(service: lb.ServiceClient, make_datums: MakeDatums) -> None:
    client = service.create_lora_training_client("tiny", rank=2, seed=0)
    client.forward_backward(make_datums(1), "cross_entropy")
    pending = client.in_turn("count", lambda trainer: trainer.accumulated.calls)  # type: ignore[attr-defined]
    client.optim_step(lb.AdamParams())
    assert pending.result() == 1
    assert client.in_turn("count", lambda trainer: trainer.accumulated.calls).result() == 0  # type: ignore[attr-defined]
