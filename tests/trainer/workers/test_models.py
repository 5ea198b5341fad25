"""A client whose model lives on a worker does all that it does with a model of its own, to the bit."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lossbook as lb
from lossbook.datums import errors
from lossbook.trainer.workers.rank import Answer
from lossbook.trainer.workers.sent import sent_loss

from .here import GroupHere, service_here

ADAM = lb.AdamParams(learning_rate=1e-2)
PROMPTS = [[1, 2, 3], [4, 5], [7, 8, 9, 10]]
GREEDY = lb.SamplingParams(max_tokens=4, temperature=0.0)


@pytest.fixture
def there(tmp_path: Path) -> lb.ServiceClient:
    return service_here(tmp_path / "checkpoints")


def test_training_gives_the_same_numbers_and_the_same_files(
    service: lb.ServiceClient, there: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    clients = [one.create_lora_training_client("tiny", rank=4, seed=0) for one in (service, there)]
    datums = make_datums(6)
    for loss in ("cross_entropy", "grpo", 0.5 * lb.get_loss("ppo") + 0.1 * lb.get_loss("cross_entropy")):
        here, remote = (client.forward_backward(datums, loss).result() for client in clients)
        assert here == remote
        assert here.stats == remote.stats
    here, remote = (client.optim_step(ADAM).result() for client in clients)
    assert here == remote
    here, remote = (client.forward(datums, "dpo").result() for client in clients)
    assert here == remote
    a, b = (
        Path(client.save_state(name).result().path) for client, name in zip(clients, ("here", "there"), strict=True)
    )
    for file in a.glob("*.safetensors"):
        assert (b / file.name).read_bytes() == file.read_bytes(), file.name
    assert clients[0].get_info() == clients[1].get_info()
    assert clients[0].how_it_runs().result() == clients[1].how_it_runs().result()
    assert clients[1].get_tokenizer().decode([72, 105]) == clients[0].get_tokenizer().decode([72, 105])


def test_a_function_of_the_client_runs_here_and_gives_the_same_numbers(
    service: lb.ServiceClient, there: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, logprobs: torch.Tensor) -> torch.Tensor:
            return -logprobs * self.scale

    def own(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> Any:
        return -sum(one.sum() for one in logprobs), {"datums": float(len(data))}

    clients = [one.create_lora_training_client("tiny", rank=4, seed=0) for one in (service, there)]
    modules, datums = [Scaled(), Scaled()], make_datums(6)
    for losses in ([own, own], modules):
        here, remote = (
            client.forward_backward(datums, loss).result() for client, loss in zip(clients, losses, strict=True)
        )
        assert here.metrics == pytest.approx(remote.metrics, rel=1e-6)
        assert here.loss_fn_outputs == remote.loss_fn_outputs
        here, remote = (client.forward(datums, loss).result() for client, loss in zip(clients, losses, strict=True))
        assert here.metrics == pytest.approx(remote.metrics, rel=1e-6)
    here, remote = (module.scale.grad for module in modules)
    assert here is not None
    assert remote is not None
    assert here.item() == pytest.approx(remote.item(), rel=1e-6)
    here, remote = (client.optim_step(ADAM).result().metrics for client in clients)
    assert here == pytest.approx(remote, rel=1e-5)
    assert here["accumulated_calls"] == 2.0

    def wrong(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> Any:
        raise ZeroDivisionError("a mistake")

    with pytest.raises(ZeroDivisionError, match="a mistake"):
        clients[1].forward_backward(datums, wrong).result()
    with pytest.raises(errors.OptimizerError, match="nothing to apply"):
        clients[1].optim_step(ADAM).result()
    clients[1].forward_backward(datums, lb.get_loss(modules[1], reduction="token-mean")).result()
    with pytest.raises(errors.OptimizerError, match="divide twice"):
        clients[1].optim_step(ADAM, grad_accumulation_normalization="num_loss_tokens").result()


def test_samples_logprobs_and_likeliest_tokens_are_the_same(
    service: lb.ServiceClient, there: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    samplers = [one.create_sampling_client(base_model="tiny") for one in (service, there)]
    here, remote = (one.sample_batch(PROMPTS, GREEDY, num_samples=2).result() for one in samplers)
    assert here == remote
    here, remote = (one.sample(PROMPTS[0], 1, GREEDY, include_prompt_logprobs=True).result() for one in samplers)
    assert here == remote
    assert samplers[0].compute_logprobs([1, 2]).result() == samplers[1].compute_logprobs([1, 2]).result()
    references = [one.create_reference_client(base_model="tiny") for one in (service, there)]
    assert references[0].fingerprint().result() == references[1].fingerprint().result()
    here, remote = (one.top_logprobs(make_datums(3), 5).result() for one in references)
    for a, b in zip(here, remote, strict=True):
        assert np.array_equal(a.tokens, b.tokens)
        assert np.array_equal(a.logprobs, b.logprobs)


def test_what_is_asked_about_prompts_and_sampled_tokens_is_the_same(
    service: lb.ServiceClient, there: lb.ServiceClient
) -> None:
    samplers = [one.create_sampling_client(base_model="tiny") for one in (service, there)]
    params = lb.SamplingParams(max_tokens=3, seed=0, temperature=0.5)
    targets = np.array([[1, -1]] * (len(PROMPTS[0]) - 1))
    options: Any = {"topk_prompt_logprobs": 2, "topk_sample_logprobs": 3, "scaled_logprobs": True}
    here, remote = (
        one.sample(PROMPTS[0], 2, params, target_prompt_logprobs=targets, **options).result() for one in samplers
    )
    assert [one.tokens for one in here.sequences] == [one.tokens for one in remote.sequences]
    assert [one.logprobs for one in here.sequences] == [one.logprobs for one in remote.sequences]
    assert here.target_prompt_logprobs == remote.target_prompt_logprobs
    pairs = [
        (one.topk_logprobs, other.topk_logprobs) for one, other in zip(here.sequences, remote.sequences, strict=True)
    ]
    for one, other in [(here.topk_prompt_logprobs, remote.topk_prompt_logprobs), *pairs]:
        assert one is not None
        assert other is not None
        assert np.array_equal(one.tokens, other.tokens)
        assert np.array_equal(one.logprobs, other.logprobs)
    with pytest.raises(errors.ModelError, match="topk_sample_logprobs must be 0"):
        samplers[1].sample(PROMPTS[0], 1, params, topk_sample_logprobs=10**6).result()
    with pytest.raises(errors.TokenRangeError, match="target_prompt_logprobs names token"):
        samplers[1].sample(PROMPTS[0], 1, params, target_prompt_logprobs=targets + 10**6).result()


def test_progress_is_refused_in_one_line(there: lb.ServiceClient) -> None:
    sampler = there.create_sampling_client(base_model="tiny")
    with pytest.raises(errors.LossbookError, match="on_progress is called in the process that samples"):
        sampler.sample(PROMPTS[0], 1, GREEDY, on_progress=print).result()


def test_errors_have_their_class_and_text_and_change_nothing(
    service: lb.ServiceClient, there: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    lacking = [lb.Datum(lb.ModelInput.from_ints([1, 2]), {"weights": [1.0, 1.0]})]
    clients = [one.create_lora_training_client("tiny", rank=4, seed=0) for one in (service, there)]
    texts = []
    for client in clients:
        with pytest.raises(errors.MissingInput) as caught:
            client.forward_backward(lacking, "cross_entropy").result()
        texts.append(str(caught.value))
        with pytest.raises(errors.OptimizerError):
            client.optim_step(ADAM).result()
        assert client.forward_backward(make_datums(2), "cross_entropy").result().metrics["loss:sum"] > 0
    assert texts[0] == texts[1]


def test_warnings_of_a_worker_are_warnings_of_the_client(tmp_path: Path) -> None:
    class Warns(GroupHere):
        def _answers(self, name: str, arguments: tuple[Any, ...]) -> Mapping[int, Answer]:
            told = (
                ("RuntimeWarning", "out of memory"),
                ("UnseenFailureWarning", "unseen"),
                ("Odd", "of no class here"),
            )
            return {rank: replace(one, warnings=told) for rank, one in super()._answers(name, arguments).items()}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        service_here(tmp_path, Warns).create_sampling_client(base_model="tiny")
    kinds = {str(one.message): one.category for one in caught}
    assert kinds == {
        "out of memory": RuntimeWarning,
        "unseen": errors.UnseenFailureWarning,
        "of no class here": UserWarning,
    }


def test_a_worker_forgets_a_frozen_model_whose_client_is_gone(tmp_path: Path) -> None:
    groups: list[GroupHere] = []

    def make() -> GroupHere:
        groups.append(GroupHere())
        return groups[-1]

    there = service_here(tmp_path, make)
    client = there.create_lora_training_client("tiny", rank=4, seed=0)
    sampler = client.save_weights_and_get_sampling_client()
    sampler.sample(PROMPTS[0], 1, GREEDY).result()
    assert "drop" not in groups[0].calls
    del sampler
    gc.collect()
    client.how_it_runs().result()
    assert groups[0].calls.count("drop") == 1


def test_a_dead_worker_fails_the_call_and_load_state_goes_on_from_the_checkpoint(
    tmp_path: Path, service: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    datums, groups = make_datums(4), iter([GroupHere(fail_at=5), GroupHere()])
    whole = service.create_lora_training_client("tiny", rank=4, seed=0)
    cut = service_here(tmp_path, lambda: next(groups)).create_lora_training_client("tiny", rank=4, seed=0)
    for client in (whole, cut):
        client.forward_backward(datums, "cross_entropy").result()
        client.optim_step(ADAM).result()
    path = cut.save_state("one-step").result().path
    sampler = cut.save_weights_and_get_sampling_client
    with pytest.raises(errors.WorkerDiedError, match=r"died during forward_backward.*load_state\(path\)"):
        cut.forward_backward(datums, "cross_entropy").result()
    with pytest.raises(errors.WorkerDiedError, match="died during forward_backward"):
        cut.optim_step(ADAM).result()
    cut.load_state(path).result()
    for client in (whole, cut):
        client.forward_backward(datums, "cross_entropy").result()
    assert whole.optim_step(ADAM).result() == cut.optim_step(ADAM).result()
    assert sampler().sample(PROMPTS[0], 1, GREEDY).result() is not None


def test_the_number_of_workers_and_their_timeout_are_checked_at_once() -> None:
    for workers in (0, -1, True, 1.5):
        with pytest.raises(errors.ModelError, match="workers is a whole number"):
            lb.ServiceClient(workers=workers)  # type: ignore[arg-type]
    for seconds in (0, float("nan"), float("inf"), True):
        with pytest.raises(errors.ModelError, match="worker_timeout is a positive number"):
            lb.ServiceClient(workers=1, worker_timeout=seconds)


def test_losses_travel_by_name_unless_only_the_client_has_them() -> None:
    """Every registered loss and preset is made on the workers; a function of a test, or one that holds parameters, here."""
    for name in [*lb.list_losses(), "trl:grpo", "ppo+token_truncate"]:
        settings = {"norm_length": 10} if name == "dr_grpo" else {}
        loss = lb.get_loss(name, **settings)
        sent = sent_loss(loss)
        assert sent is not None, name
        assert repr(sent.received()) == repr(loss)
    assert sent_loss(lb.get_loss(lambda logprobs: -logprobs)) is None
    assert sent_loss(lb.get_loss(learned)) is None
    assert sent_loss(0.5 * lb.get_loss("ppo") + lb.get_loss(learned)) is None


SCALE = torch.nn.Parameter(torch.ones(()))


def scaled(logprobs: torch.Tensor) -> torch.Tensor:
    return -logprobs * SCALE


def learned(logprobs: torch.Tensor) -> torch.Tensor:
    """Its parameter is in a function that it calls."""
    return scaled(logprobs)
