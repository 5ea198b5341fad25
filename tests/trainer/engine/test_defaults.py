"""A script's own defaults of torch: every call and every loss works under them, and gives the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import lossbook as lb
from lossbook.losses.cards.sample_inputs import datums, first_that_works, outputs, usable

MakeDatums = Callable[..., list[lb.Datum]]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def bfloat16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def meta() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


DEFAULTS = [float64, bfloat16, meta, deterministic]


def all_calls(folder: Path, make_datums: MakeDatums) -> dict[str, Any]:
    """What the main calls give, as plain numbers."""
    service = lb.ServiceClient(device="cpu", checkpoint_dir=folder)
    client = service.create_lora_training_client("tiny", rank=2, seed=0, value_head=True)
    full = service.create_training_client("tiny")
    encoder = service.create_training_client("tiny-encoder")
    data = make_datums(4)
    results: dict[str, Any] = {}
    for name, one in (("lora", client), ("full", full)):
        for future in (one.forward(data), one.forward_backward(data, "ppo")):
            output = future.result()
            results[f"{name} {len(results)}"] = output.metrics, [o["logprobs"].tolist() for o in output.loss_fn_outputs]
        results[f"{name} step"] = one.optim_step(lb.AdamParams(learning_rate=1e-2, grad_clip_norm=0.1)).result().metrics
    pairs = [lb.Datum(lb.ModelInput.from_ints([i, i + 1, i + 2]), {}) for i in range(4)]
    output = encoder.forward_backward_contrastive(pairs, num_queries=2, temperature=0.1).result()
    results["contrastive"] = output.metrics, [o["embedding"].tolist() for o in output.loss_fn_outputs]
    sampler = client.save_weights_and_get_sampling_client()
    greedy = sampler.sample([1, 2, 3], 2, lb.SamplingParams(max_tokens=4, temperature=0.0)).result()
    drawn = sampler.sample_batch([[1, 2], [3]], lb.SamplingParams(max_tokens=4, seed=0), num_samples=2).result()
    sequences = [one for response in (greedy, *drawn) for one in response.sequences]
    results["samples"] = [(one.tokens, one.logprobs, one.stop_reason) for one in sequences]
    results["of tokens"] = sampler.compute_logprobs([1, 2, 3]).result()
    results["top"] = [t.logprobs.tolist() for t in client.create_reference_client().top_logprobs(data, 3).result()]
    path = client.save_state("state", overwrite=True).result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    results["resumed"] = resumed.forward(data).result().metrics
    return results


@pytest.mark.parametrize("default", DEFAULTS)
def test_every_call_gives_the_same_numbers_under_a_scripts_defaults(
    default: Callable[[], Any], tmp_path: Path, make_datums: MakeDatums
) -> None:
    expected = all_calls(tmp_path, make_datums)
    with default():
        under = all_calls(tmp_path, make_datums)
    assert str(under) == str(expected)


def computed(data: list[lb.Datum], loss: Any, outputs: Any) -> tuple[float, Any, list[Any]]:
    """A loss's value, metrics and gradient, each call on fresh leaves."""
    leaves = {key: [t.detach().clone().requires_grad_() for t in values] for key, values in outputs.items()}
    value, metrics = loss(data, leaves)
    value.backward()
    return (
        float(value.detach()),
        metrics,
        [None if t.grad is None else t.grad.tolist() for ts in leaves.values() for t in ts],
    )


@pytest.mark.parametrize("default", [float64, bfloat16, meta])
def test_every_loss_gives_the_same_numbers_under_a_scripts_defaults(default: Callable[[], Any]) -> None:
    different: dict[str, str] = {}
    for name in lb.list_losses():
        loss = usable(name)
        assert isinstance(loss, lb.Loss)
        count = first_that_works(loss, lambda n, loss=loss: loss(datums(loss, n), outputs(loss, n)) and n)
        data, given = datums(loss, count), outputs(loss, count)
        expected = computed(data, loss, given)
        with default():
            try:
                under = computed(datums(loss, count), loss, given)
            except Exception as error:
                different[name] = f"{type(error).__name__}: {error}"
                continue
        if str(under) != str(expected):
            different[name] = f"{under} instead of {expected}"
    assert different == {}
