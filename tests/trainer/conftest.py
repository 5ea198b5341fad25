"""What the trainer's tests share: clients of the tiny models, datums that every loss can read, and a client's whole state."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import lossbook as lb
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.tiny import build_tiny_tokenizer

from .ranks.processes import RankProcesses

VOCABULARY = 260
#: A tiny model of random weights gives every token about this logprob, in nats.
UNIFORM = -float(np.log(VOCABULARY))

State = dict[str, Any]


@pytest.fixture
def service(tmp_path: Path) -> lb.ServiceClient:
    """A service on the CPU that keeps its checkpoints in the test's own folder."""
    return lb.ServiceClient(device="cpu", checkpoint_dir=tmp_path / "checkpoints")


@pytest.fixture
def training(service: lb.ServiceClient) -> TrainingClient:
    """A LoRA client of the tiny decoder."""
    return service.create_lora_training_client("tiny", rank=4, seed=0)


@pytest.fixture(scope="session")
def counting() -> ModuleType:
    """benchmarks/counting.py: launches on a device, uploads to it and reads from it, counted on a CPU."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "counting.py"
    spec = importlib.util.spec_from_file_location("counting", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make_datums() -> Callable[..., list[lb.Datum]]:
    """make_datums(count=6, seed=0): datums that carry what any loss reads; see `random_datums`."""
    return random_datums


@pytest.fixture
def gradients_of() -> Callable[[TrainingClient], dict[str, Tensor]]:
    """gradients_of(client): copies of the accumulated gradients by parameter name; zeros where there is none."""
    return copied_gradients


@pytest.fixture
def state_of() -> Callable[[TrainingClient], State]:
    """state_of(client): all that a failed call must leave as it was, with NaN-safe, bit-exact equality."""
    return whole_state


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankProcesses]:
    """ranks.run(function, *args, size=2): what function(ranks, *args) returns on each of `size` ranks, in processes that are kept."""
    processes = RankProcesses()
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def model_with_dropout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a two-layer GPT-2 that drops a third of everything in training."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=260, n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.3, embd_pdrop=0.3, attn_pdrop=0.3
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    build_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def random_datums(count: int = 6, seed: int = 0, *, longest: int = 12) -> list[lb.Datum]:
    """`count` datums of random lengths, the prompt masked and the response weighted by fractions.

    Sampling and reference logprobs lie near those of a model of random weights, so that ratios are about 1 and some tokens
    are clipped. Masked entries hold NaN, which nothing may read.
    """
    rng = np.random.default_rng(seed)
    datums: list[lb.Datum] = []
    for _ in range(count):
        length = int(rng.integers(4, longest + 1))
        prompt = int(rng.integers(1, length - 1))
        tokens = rng.integers(0, VOCABULARY, length + 1)
        masked = np.arange(length) < prompt
        inputs = {
            "target_tokens": tokens[1:],
            "weights": np.where(masked, 0.0, rng.uniform(0.25, 2.0, length)),
            "sampling_logprobs": np.where(masked, np.nan, UNIFORM + rng.normal(0, 0.3, length)),
            "ref_logprobs": np.where(masked, np.nan, UNIFORM + rng.normal(0, 0.3, length)),
            "advantages": np.where(masked, np.nan, rng.normal(0, 1, length)),
        }
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1]), inputs))
    return datums


def copied_gradients(client: TrainingClient) -> dict[str, Tensor]:
    """Gradients by parameter name."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in client.local.model.trainable().items()
    }


def whole_state(client: TrainingClient) -> State:
    """Weights, gradients, optimizer, accumulation and random state as bytes, so that `==` is bit for bit."""
    parameters = client.local.model.trainable()
    return {
        "weights": {name: _bytes(p) for name, p in parameters.items()},
        "gradients": {name: None if p.grad is None else _bytes(p.grad) for name, p in parameters.items()},
        "moments": {name: _bytes(tensor) for name, tensor in client.local.optimizer.state_tensors().items()},
        "optimizer": client.local.optimizer.meta(),
        "accumulated": copy.deepcopy(vars(client.local.accumulated)),
        "random": _bytes(torch.get_rng_state()),
        "training": client.local.model.module.training,
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
