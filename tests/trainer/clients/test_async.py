"""Clients are futures of themselves, and every method that gives a future or a client has an async twin that gives the same."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

import lossbook as lb
from lossbook.datums.errors import TokenRangeError, UnknownLossError, UnseenFailureWarning
from lossbook.trainer.clients.futures import Calls, Future, Worker
from lossbook.trainer.clients.reference import ReferenceClient
from lossbook.trainer.clients.sampling import SamplingClient
from lossbook.trainer.clients.service import ServiceClient
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
PATIENCE = 60
CLIENTS = [ServiceClient, TrainingClient, SamplingClient, ReferenceClient]
SEEDED = lb.SamplingParams(max_tokens=4, seed=0)


def public(client: type) -> dict[str, Any]:
    """A client's own public methods."""
    return {name: one for name, one in vars(client).items() if inspect.isfunction(one) and not name.startswith("_")}


def gives_a_future_or_a_client(method: Any) -> bool:
    given = get_type_hints(method)["return"]
    return given in CLIENTS or getattr(given, "__origin__", None) is Future


@pytest.mark.parametrize("client", CLIENTS)
def test_every_method_that_gives_a_future_or_a_client_has_a_twin_with_its_parameters(client: type) -> None:
    methods = public(client)
    plain = [name for name in methods if not name.endswith("_async") and gives_a_future_or_a_client(methods[name])]
    assert len(plain) >= 3
    for name in plain:
        twin = methods[f"{name}_async"]
        assert inspect.iscoroutinefunction(twin)
        assert inspect.signature(twin).parameters == inspect.signature(methods[name]).parameters
        assert twin.__qualname__ == f"{client.__name__}.{name}_async"
        assert f"`{name}`" in twin.__doc__


def test_clients_can_be_waited_for_in_every_way_and_are_themselves(service: lb.ServiceClient) -> None:
    training = service.create_training_client("tiny")
    clients = [training, training.create_reference_client(), training.save_weights_and_get_sampling_client()]

    async def waited(client: Any) -> list[Any]:
        return [await client, await client.result_async(1.0), await asyncio.create_task(client.coroutine())]

    for client in clients:
        assert client.result() is client
        assert client.future().result() is client
        assert all(one is client for one in asyncio.run(waited(client)))


def test_async_twins_give_what_the_plain_methods_give(make_datums: MakeDatums) -> None:
    datums, params = make_datums(2), lb.AdamParams(learning_rate=1e-2)

    def plainly() -> list[Any]:
        service = lb.ServiceClient(device="cpu")
        training = service.create_lora_training_client("tiny", 2, seed=0)
        trained = [training.forward_backward(datums, "cross_entropy"), training.optim_step(params)]
        sampler, reference = training.save_weights_and_get_sampling_client(), training.create_reference_client()
        return [
            *(future.result() for future in trained),
            sampler.sample([1, 2], 2, SEEDED).result(),
            sampler.sample_batch([[1, 2], [3]], SEEDED).result(),
            sampler.compute_logprobs([1, 2, 3]).result(),
            reference.forward(datums).result(),
            training.forward(datums).result(),
            service.create_sampling_client(base_model="tiny").compute_logprobs([1, 2, 3]).result(),
        ]

    async def in_asyncio() -> list[Any]:
        service = lb.ServiceClient(device="cpu")
        training = await service.create_lora_training_client_async("tiny", 2, seed=0)
        trained = [
            await training.forward_backward_async(datums, "cross_entropy"),
            await training.optim_step_async(params),
        ]
        sampler = await training.save_weights_and_get_sampling_client_async()
        reference = await training.create_reference_client_async()
        return [
            *[await future for future in trained],
            await sampler.sample_async([1, 2], 2, SEEDED),
            await sampler.sample_batch_async([[1, 2], [3]], SEEDED),
            await sampler.compute_logprobs_async([1, 2, 3]),
            await (await reference.forward_async(datums)),
            await (await training.forward_async(datums)),
            await (await service.create_sampling_client_async(base_model="tiny")).compute_logprobs_async([1, 2, 3]),
        ]

    assert asyncio.run(in_asyncio()) == plainly()


def test_a_twin_raises_what_the_plain_method_raises(training: TrainingClient) -> None:
    sampler = training.save_weights_and_get_sampling_client()
    with pytest.raises(TokenRangeError, match="999"):
        asyncio.run(sampler.sample_async([1, 999], 1, SEEDED))
    with pytest.raises(UnknownLossError, match="no_such_loss"):
        asyncio.run(training.forward_backward_async([], "no_such_loss"))


def test_a_call_is_a_standard_future_for_code_that_takes_those() -> None:
    calls, seen = Calls("training", Worker()), []
    futures = [calls.submit("forward", lambda i=i: i * i).future() for i in range(20)]
    futures[3].add_done_callback(lambda done: seen.append(done.result()))
    done, waiting = concurrent.futures.wait(futures, PATIENCE)
    assert not waiting
    assert sorted(one.result() for one in done) == [i * i for i in range(20)]
    assert seen == [9]

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*map(asyncio.wrap_future, futures), calls.submit("forward", lambda: 7).coroutine())

    assert asyncio.run(all_of_them()) == [*(i * i for i in range(20)), 7]


@pytest.mark.parametrize("look", ["result", "exception"])
def test_looking_at_the_standard_future_is_looking_at_the_call(look: str) -> None:
    calls = Calls("training", Worker())
    future = calls.submit("forward", lambda: 1 // 0).future()
    if look == "result":
        with pytest.raises(ZeroDivisionError):
            future.result(PATIENCE)
    else:
        assert isinstance(future.exception(PATIENCE), ZeroDivisionError)
    assert calls.submit("forward", lambda: 3).result(PATIENCE) == 3


@pytest.mark.filterwarnings(f"ignore::{UnseenFailureWarning.__module__}.{UnseenFailureWarning.__name__}")
def test_a_standard_future_that_nobody_looked_at_still_fails_the_next_call() -> None:
    calls = Calls("training", Worker())
    future = calls.submit("forward", lambda: 1 // 0).future()
    concurrent.futures.wait([future], PATIENCE)
    with pytest.raises(ZeroDivisionError):
        calls.submit("forward", lambda: 3)


def test_calls_of_training_cannot_be_withdrawn() -> None:
    calls, go_on = Calls("training", Worker()), threading.Event()
    first, second = calls.submit("forward_backward", lambda: go_on.wait(PATIENCE)), calls.submit("optim_step", int)
    assert not second.cancel()
    assert not second.future().cancel()
    go_on.set()
    assert first.result(PATIENCE)
    assert second.result(PATIENCE) == 0
