"""What is counted as a launch, an upload and a read, by operations of which each kind is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cpu")  # an object stands for the device, a word for the host


def on_device(*values: float) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def on_host(*values: float) -> Tensor:
    return torch.from_numpy(np.array(values))


@pytest.mark.parametrize(
    ("run", "launches"),
    [
        pytest.param(lambda x: x + 1, 1, id="an operation"),
        pytest.param(lambda x: x.mul_(2), 1, id="an operation in place"),
        pytest.param(lambda x: x.view(1, 2).t()[0].detach().expand(3, 2), 0, id="views"),
        pytest.param(lambda x: (torch.empty_like(x), x.new_empty(3), torch.empty(2, device=DEVICE)), 0, id="empties"),
        pytest.param(lambda x: torch.zeros(2, device=DEVICE), 1, id="zeros"),
        pytest.param(lambda x: torch.zeros(2) + torch.arange(2), 0, id="on the host, which is nothing for the device"),
        pytest.param(lambda x: x + torch.tensor(2.0), 1, id="with a number on the host"),
        pytest.param(lambda x: torch._foreach_add([x, x, x], 1), 1, id="on a list"),
        pytest.param(lambda x: torch.nn.functional.linear(x[None], x[None]), 1, id="a product"),
        pytest.param(lambda x: x.half().float(), 2, id="casts"),
        pytest.param(lambda x: (x.requires_grad_() * x).sum().backward(), 6, id="mul, sum; ones, mul, mul, add"),
    ],
)
def test_a_launch_is_an_operation_on_the_device_that_computes(
    counting: ModuleType, run: Callable[[Tensor], object], launches: int
):
    x = on_device(1.0, 2.0)
    with counting.Counts() as counts:
        run(x)
    assert counts.launches.total() == launches, counts.launches
    assert (counts.uploads, counts.reads, counts.refused) == ([], [], [])


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda x: on_host(1.0).to(DEVICE), id="to"),
        pytest.param(lambda x: on_host(1.0).to(x), id="to another tensor's device"),
        pytest.param(lambda x: on_host(1.0).to(x.device, torch.float16), id="to with a cast"),
        pytest.param(lambda x: torch.zeros(3).to(device=DEVICE, non_blocking=True), id="to without a wait"),
        pytest.param(lambda x: torch.tensor([1.0], device=DEVICE), id="from a list"),
        pytest.param(lambda x: torch.as_tensor(np.ones(2), device=x.device), id="from an array"),
        pytest.param(lambda x: x.copy_(on_host(3.0, 4.0)), id="copied over"),
        pytest.param(lambda x: x[torch.tensor([0])], id="an index on the host"),
    ],
)
def test_an_upload_is_a_copy_from_the_host(counting: ModuleType, run: Callable[[Tensor], object]):
    x = on_device(1.0, 2.0)
    with counting.Counts() as counts:
        run(x)
    assert len(counts.uploads) == 1, counts.uploads
    assert (counts.reads, counts.refused) == ([], [])


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(lambda x: x[0].item(), id="item"),
        pytest.param(lambda x: float(x[0]), id="float"),
        pytest.param(lambda x: bool((x > 1).any()), id="bool"),
        pytest.param(lambda x: x.tolist(), id="tolist"),
        pytest.param(lambda x: x.cpu().numpy().tolist(), id="cpu, read on from there"),
        pytest.param(lambda x: float(x.to("cpu", non_blocking=True).sum()), id="to the host"),
        pytest.param(lambda x: torch.empty(2).copy_(x, non_blocking=True).tolist(), id="copied into the host's memory"),
        pytest.param(lambda x: torch.equal(x, x), id="equal"),
        pytest.param(lambda x: x.nonzero(), id="nonzero"),
        pytest.param(lambda x: x[x > 1], id="a boolean index"),
        pytest.param(lambda x: x.masked_select(x > 1), id="masked_select"),
        pytest.param(lambda x: x.unique(), id="unique"),
    ],
)
def test_a_read_is_whatever_waits_for_the_devices_values(counting: ModuleType, run: Callable[[Tensor], object]):
    x = on_device(1.0, 2.0)
    with counting.Counts() as counts:
        run(x)
    assert len(counts.reads) == 1, counts.reads
    assert (counts.uploads, counts.refused) == ([], [])


def test_what_a_device_would_refuse_is_named_with_its_place(counting: ModuleType):
    x = on_device(1.0, 2.0)
    with counting.Counts() as counts:
        x + on_host(1.0, 2.0)
    (place,) = counts.refused
    assert place.startswith("aten::add < ")
    assert "test_counting.py:" in place


def test_what_is_the_hosts_stays_so_through_views_operations_and_devices_asked_of_it(counting: ModuleType):
    with counting.Counts() as counts:
        there = on_host(1.0, 2.0, 3.0)[1:] * 2
        more = torch.arange(2, device=there.device) + there.unsqueeze(0)
        assert more.tolist() == [[4.0, 7.0]]
    assert counts.launches.total() == len(counts.uploads) == len(counts.reads) == 0


def test_copies_are_apart_as_on_a_gpu(counting: ModuleType):
    with counting.Counts():
        there = on_host(1.0)
        here = there.to(DEVICE)
        there += 1
        back = here.cpu()
        here += 5
    assert (there.item(), here.item(), back.item()) == (2.0, 6.0, 1.0)


def test_the_backward_of_ones_own_function_is_seen(counting: ModuleType):
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            gradient.cpu()
            return gradient * 2

    x = on_device(1.0).requires_grad_()
    with counting.Counts() as counts:
        Reads.apply(x).sum().backward()
    assert len(counts.reads) == 1
    assert x.grad is not None
    assert x.grad.item() == 2


def test_parts_of_a_step_are_counted_apart_and_a_warm_up_is_forgotten(counting: ModuleType):
    x = on_device(1.0)
    counts = counting.Counts()
    with counts:
        x + 1
    counts.clear()
    with counts:
        x + 1
        with counts.during("the end"):
            x * 2 + 1
    assert dict(counts.by_phase) == {"": 1, "the end": 2}


def test_another_thread_is_counted_where_it_enters(counting: ModuleType):
    x, counts = on_device(1.0), counting.Counts()

    def run() -> None:
        with counts:
            x + 1

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    x + 1
    assert counts.launches.total() == 1
