"""A client whose model lies on two workers gives the numbers of one process, whatever it is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lossbook as lb
from lossbook.datums import errors
from lossbook.trainer.responses import ForwardBackwardOutput

from ..ranks.processes import RankProcesses
from .here import GroupOfProcesses, service_here

ADAM = lb.AdamParams(learning_rate=1e-2, grad_clip_norm=1.0)
PROMPTS = [[1, 2, 3], [4, 5], [7, 8, 9, 10]]
PARAMS = lb.SamplingParams(max_tokens=5, seed=3)
#: Of how a call was cut.
CUTS = ("micro_batches",)


@pytest.fixture
def there(ranks: RankProcesses, tmp_path: Path) -> lb.ServiceClient:
    return service_here(tmp_path / "checkpoints", lambda: GroupOfProcesses(ranks), tokens_per_micro_batch=24)


def assert_alike(one: ForwardBackwardOutput, other: ForwardBackwardOutput) -> None:
    """Numbers within rounding of float32; sums are taken in another order."""
    assert one.metrics.keys() == other.metrics.keys()
    for name in one.metrics.keys() - set(CUTS):
        assert one.metrics[name] == pytest.approx(other.metrics[name], rel=1e-5, abs=1e-6), name
    for left, right in zip(one.loss_fn_outputs, other.loss_fn_outputs, strict=True):
        assert left.keys() == right.keys()
        for name in left:
            assert np.allclose(left[name].to_numpy(), right[name].to_numpy(), rtol=1e-5, atol=1e-6)


def spread(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> Any:
    """A function that no worker can import: it couples the whole call."""
    values = torch.cat([one.reshape(-1) for one in logprobs])
    return values.var() + values.mean(), {"tokens": float(len(values))}


@pytest.fixture
def sharing(ranks: RankProcesses, tmp_path: Path) -> lb.ServiceClient:
    """Two workers that share each matrix."""
    make_group, folder = (lambda: GroupOfProcesses(ranks)), tmp_path / "sharing"
    return service_here(folder, make_group, tensor_parallel=2, tokens_per_micro_batch=24)


@pytest.mark.parametrize(
    ("workers", "all_weights"),
    [("there", False), ("there", True), ("sharing", True)],
    ids=["adapters", "all weights", "all weights, matrices shared"],
)
def test_every_call_of_a_client_gives_the_numbers_of_one_process(
    workers: str,
    all_weights: bool,
    service: lb.ServiceClient,
    request: pytest.FixtureRequest,
    make_datums: Callable[..., list[lb.Datum]],
) -> None:
    there: lb.ServiceClient = request.getfixturevalue(workers)
    clients = [
        one.create_training_client("tiny") if all_weights else one.create_lora_training_client("tiny", rank=4, seed=0)
        for one in (service, there)
    ]
    datums = make_datums(6)
    for loss in ("grpo", "dpo", 0.5 * lb.get_loss("ppo") + 0.1 * lb.get_loss("cross_entropy"), spread):
        assert_alike(*(client.forward_backward(datums, loss).result() for client in clients))
    norms = [client.optim_step(ADAM).result().metrics for client in clients]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for loss in ("cross_entropy", spread):
        assert_alike(*(client.forward(datums, loss).result() for client in clients))
    assert clients[0].get_info().trainable_parameters == clients[1].get_info().trainable_parameters
    samplers = [client.save_weights_and_get_sampling_client() for client in clients]
    answers = [one.sample_batch(PROMPTS, PARAMS, num_samples=2).result() for one in samplers]
    assert [[s.tokens for s in r.sequences] for r in answers[0]] == [
        [s.tokens for s in r.sequences] for r in answers[1]
    ]
    logprobs = [one.compute_logprobs([1, 2, 3]).result()[1:] for one in samplers]
    assert logprobs[0] == pytest.approx(logprobs[1], rel=1e-5)
    references = [client.create_reference_client() for client in clients]
    for here, remote in zip(*(one.top_logprobs(datums, 3).result() for one in references), strict=True):
        assert np.array_equal(here.tokens, remote.tokens)
        assert np.allclose(here.logprobs, remote.logprobs, atol=1e-5)


def test_an_error_of_one_worker_is_raised_and_all_go_on(
    there: lb.ServiceClient, make_datums: Callable[..., list[lb.Datum]]
) -> None:
    client = there.create_lora_training_client("tiny", rank=4, seed=0)
    lacking = lb.Datum(lb.ModelInput.from_ints([1, 2]), {"weights": [1.0, 1.0]})
    with pytest.raises(errors.MissingInput, match="datum 4 of 5 carries no target_tokens"):
        client.forward_backward([*make_datums(4), lacking], "cross_entropy").result()
    sampler = client.save_weights_and_get_sampling_client()
    with pytest.raises(errors.TokenRangeError, match="prompt 3 of 4 has token 100000"):
        sampler.sample_batch([*PROMPTS, [100_000]], PARAMS).result()
    assert client.forward_backward(make_datums(4), "cross_entropy").result().metrics["loss:sum"] > 0


@pytest.mark.slow
def test_samples_that_wait_are_shared_by_the_workers_and_are_those_of_one_process(
    service: lb.ServiceClient, there: lb.ServiceClient
) -> None:
    base = [one.create_sampling_client(base_model="tiny") for one in (service, there)]
    calls: list[dict[str, Any]] = [
        {"prompt": prompt, "sampling_params": replace(PARAMS, seed=seed, temperature=0.7), "scaled_logprobs": True}
        for seed, prompt in enumerate([*PROMPTS, [1, 100_000]])
    ]
    calls[1]["topk_prompt_logprobs"] = 2
    calls[2]["target_prompt_logprobs"] = [1, 2, -1]
    here = [base[0].sample(**call) for call in calls[:-1]]
    released = threading.Event()
    base[1].in_turn("wait", lambda _: released.wait(60))
    remote = [base[1].sample(**call) for call in calls]
    released.set()
    for one, other in zip([each.result() for each in here], [each.result() for each in remote[:-1]], strict=True):
        assert [each.tokens for each in one.sequences] == [each.tokens for each in other.sequences]
        for mine, theirs in zip(one.sequences, other.sequences, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
    likeliest = [each[1].result().topk_prompt_logprobs for each in (here, remote)]
    assert likeliest[0] is not None
    assert likeliest[1] is not None
    assert np.array_equal(likeliest[0].tokens, likeliest[1].tokens)
    targets = [each[2].result().target_prompt_logprobs for each in (here, remote)]
    assert targets[0] is not None
    assert targets[0].tolist() == pytest.approx(targets[1].tolist(), abs=1e-5)
    with pytest.raises(errors.TokenRangeError, match="the prompt has token 100000"):
        remote[-1].result()
