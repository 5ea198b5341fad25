"""Copies between host and device: one for all tensors that go together, and the numbers are the same bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lossbook.trainer.device import taking_gpu_path
from lossbook.trainer.transfer import Report, counting_transfers, to_device, to_host

CPU = torch.device("cpu")


def of_all_dtypes() -> dict[str, Tensor]:
    return {
        "flags": torch.tensor([True, False, True]),
        "ids": torch.tensor([[1, 2], [-(2**62), 2**62]]),
        "numbers": torch.tensor([0.1, -torch.inf, torch.nan]),
        "half": torch.tensor([0.1, 3.0, -7.0], dtype=torch.bfloat16),
        "total": torch.tensor(1 / 3, dtype=torch.float64),
        "every second": torch.arange(8, dtype=torch.float32)[::2],
        "nothing": torch.zeros(0, 4, dtype=torch.float64),
    }


def same(ones: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert list(ones) == list(others)
    for name, one in ones.items():
        assert one.dtype == others[name].dtype
        assert one.shape == others[name].shape
        torch.testing.assert_close(one, others[name], rtol=0, atol=0, equal_nan=True)


def test_tensors_of_all_dtypes_go_to_a_device_in_one_copy() -> None:
    with taking_gpu_path(), counting_transfers() as counted:
        there = to_device(of_all_dtypes(), CPU)
    same(there, of_all_dtypes())
    assert (counted.uploads, counted.reads) == (1, 0)


def test_tensors_of_all_dtypes_are_read_in_one_copy() -> None:
    with taking_gpu_path(), counting_transfers() as counted:
        here = to_host(of_all_dtypes())
    same(here, of_all_dtypes())
    assert (counted.uploads, counted.reads) == (0, 1)


def test_a_report_holds_what_its_tensors_were_when_it_was_made() -> None:
    with taking_gpu_path():
        value = torch.ones(3)
        report = Report({"value": value})
        value += 1
        assert report.read()["value"].tolist() == [1, 1, 1]


def test_nothing_is_copied_where_the_host_is_the_device() -> None:
    tensors = of_all_dtypes()
    with counting_transfers() as counted:
        assert all(there is tensors[name] for name, there in to_device(tensors, CPU).items())
        assert all(here.data_ptr() == tensors[name].data_ptr() for name, here in to_host(tensors).items())
    assert (counted.uploads, counted.reads) == (0, 0)


def test_a_tensor_that_is_changed_in_place_does_not_make_its_neighbours_look_changed() -> None:
    with taking_gpu_path():
        there = to_device(of_all_dtypes(), CPU)
    there["numbers"].add_(1)
    assert [name for name, tensor in there.items() if tensor._version] == ["numbers"]


def test_on_a_gpu_a_report_is_read_without_waiting_for_what_was_queued_after_it() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    cuda = torch.device("cuda")
    there = to_device(of_all_dtypes(), cuda)
    report = Report(there)
    torch.cuda._sleep(2 * 10**9)
    done = torch.cuda.Event()
    done.record()
    same(report.read(), of_all_dtypes())
    assert not done.query()
