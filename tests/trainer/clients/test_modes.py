"""Whatever a loss does to torch's settings, the next call runs in the usual ones and the caller finds its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient

MakeDatums = Callable[..., list[lb.Datum]]
#: Contexts that were entered and never left live as long as these.
kept: list[Any] = []


def enter(context: AbstractContextManager[Any]) -> None:
    context.__enter__()
    kept.append(context)


#: What a loss may do to the process or to the thread that runs it.
CHANGES: dict[str, Callable[[], Any]] = {
    "gradients off": lambda: torch.set_grad_enabled(False),
    "no_grad entered": lambda: enter(torch.no_grad()),
    "inference mode entered": lambda: enter(torch.inference_mode()),
    "autocast entered": lambda: enter(torch.autocast("cpu", dtype=torch.bfloat16)),
    "autocast on": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast without its cache": lambda: torch.set_autocast_cache_enabled(False),
    "default dtype float64": lambda: torch.set_default_dtype(torch.float64),
    "default dtype bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "default device meta": lambda: torch.set_default_device("meta"),
    "a device entered": lambda: enter(torch.device("meta")),
    "a dispatch mode entered": lambda: enter(TorchDispatchMode()),
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "cudnn's benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "threads": lambda: torch.set_num_threads(2),
    "products in bfloat16": lambda: torch.set_float32_matmul_precision("medium"),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
    "a filter of warnings": lambda: warnings.simplefilter("error"),
    "no filters of warnings": lambda: warnings.resetwarnings(),
}


def modes() -> dict[str, Any]:
    """The settings, as the thread that asks sees them."""
    return {
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "dtype": torch.get_default_dtype(),
        "device": str(torch.get_default_device()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "anomalies": torch.is_anomaly_enabled(),
        "filters": list(warnings.filters),
        "result": (torch.ones(2) / 3).sum(),
    }


@pytest.fixture(autouse=True)
def leave_kept_contexts() -> Iterator[None]:
    yield
    kept.clear()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.sampled_from(sorted(CHANGES)), max_size=4), fails=st.booleans())
def test_a_loss_that_leaves_settings_changed_changes_nothing_for_anybody(
    changes: list[str], fails: bool, training: TrainingClient, make_datums: MakeDatums
) -> None:
    datums = make_datums(3)

    def loss(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        for change in changes:
            CHANGES[change]()
        if fails:
            raise ZeroDivisionError("the loss is broken")
        return -torch.cat(logprobs).sum(), {}

    def seen(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        inside.append(modes())
        return -torch.cat(logprobs).sum(), {}

    inside: list[dict[str, Any]] = []
    before = modes()
    usual = training.forward_backward_custom(datums, seen).result()
    training.forward_backward_custom(datums, loss).exception()  # a change may end its own call, and no other
    after = training.forward_backward_custom(datums, seen).result()
    training.discard_gradients().result()
    assert after.metrics == usual.metrics
    assert str(inside[1]) == str(inside[0])
    assert str(modes()) == str(before)


def test_a_loss_that_turns_gradients_off_and_fails_does_not_poison_other_clients(
    service: lb.ServiceClient, training: TrainingClient, make_datums: MakeDatums
) -> None:
    def poison(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        torch.set_grad_enabled(False)
        raise ValueError("the loss is broken")

    other = service.create_lora_training_client("tiny", rank=2, seed=1)
    with pytest.raises(ValueError, match="the loss is broken"):
        training.forward_backward_custom(make_datums(2), poison).result()
    assert other.forward_backward(make_datums(2), "cross_entropy").result().metrics["loss:sum"] > 0
    assert training.forward_backward(make_datums(2), "cross_entropy").result().metrics["loss:sum"] > 0


def test_filters_of_warnings_that_the_caller_has_set_aside_meanwhile_are_left_to_it(
    training: TrainingClient, make_datums: MakeDatums
) -> None:
    def loss(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        context.__enter__()
        warnings.simplefilter("ignore")
        return -torch.cat(logprobs).sum(), {}

    context = warnings.catch_warnings()
    before = list(warnings.filters)
    training.forward_backward_custom(make_datums(2), loss).result()
    context.__exit__(None, None, None)
    assert list(warnings.filters) == before


def test_the_jobs_of_a_deterministic_service_run_with_torchs_deterministic_algorithms_and_nothing_else_does(
    make_datums: MakeDatums,
) -> None:
    def loss(data: list[lb.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        inside.append(torch.are_deterministic_algorithms_enabled())
        return -torch.cat(logprobs).sum(), {}

    inside: list[bool] = []
    for deterministic in (True, False):
        service = lb.ServiceClient(device="cpu", deterministic=deterministic)
        client = service.create_lora_training_client("tiny", rank=2, seed=0)
        client.forward_backward_custom(make_datums(2), loss).result()
        assert not torch.are_deterministic_algorithms_enabled()
    assert inside == [True, False]
