"""A CPU that takes a GPU's path: its sizes are a GPU's, and its gradients are those of the CPU's path."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.device import path_of, taking_gpu_path
from lossbook.trainer.head.logprobs import HEAD_MEMORY, default_head_memory

CPU = torch.device("cpu")


def test_a_device_takes_its_own_path_unless_a_cpu_is_asked_to_take_a_gpus():
    assert [path_of(torch.device(name)) for name in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda", "other"]
    with taking_gpu_path():
        with taking_gpu_path():
            assert [path_of(torch.device(name)) for name in ("cpu", "cuda", "mps")] == ["cuda", "cuda", "other"]
        assert path_of(CPU) == "cuda"
        assert default_head_memory(CPU) == HEAD_MEMORY["other"]
    assert path_of(CPU) == "cpu"
    assert default_head_memory(CPU) == HEAD_MEMORY["cpu"]


def test_the_path_is_a_cpus_again_after_an_error():
    with pytest.raises(KeyError), taking_gpu_path():
        raise KeyError
    assert path_of(CPU) == "cpu"


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo", "grpo"])
def test_both_paths_give_the_same_gradients(
    make_datums: Callable[..., list[lb.Datum]],
    gradients_of: Callable[[TrainingClient], dict[str, torch.Tensor]],
    loss: str,
):
    def client() -> TrainingClient:
        training = lb.ServiceClient(device="cpu", dtype=torch.float64).create_training_client("tiny")
        training.forward_backward(make_datums(6), loss).result()
        return training

    expected = client()
    with taking_gpu_path():
        ours = client()
    sizes = [training.local.engine.settings.tokens_per_micro_batch for training in (expected, ours)]
    assert sizes == [4096, 16384]
    for name, gradient in gradients_of(expected).items():
        assert (gradients_of(ours)[name] - gradient).norm() <= 1e-6 * gradient.norm(), name
