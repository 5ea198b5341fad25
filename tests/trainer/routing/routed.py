"""Datums with routing matrices, and what a client makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.routing import encode_routing
from lossbook.trainer.clients.training import TrainingClient

from ..conftest import copied_gradients

EXPERTS, WIDTH = 4, 2


def client(folder: str, **settings: Any) -> TrainingClient:
    return lb.ServiceClient(device="cpu", **settings).create_training_client(folder)


def layers_in(training: TrainingClient) -> list[nn.Module]:
    """The modules that hold experts, in the order of their layers."""
    return [module for module in training.local.model.backbone.modules() if "experts" in module._modules]


def routes_for(lengths: list[int], layers: int, seed: int = 0) -> list[np.ndarray]:
    """For each length, [length, layers, WIDTH] experts drawn without regard to any router."""
    drawn = np.random.default_rng(seed)
    return [
        np.stack([[drawn.permutation(EXPERTS)[:WIDTH] for _ in range(layers)] for _ in range(length)])
        for length in lengths
    ]


def datums_with(routes: list[Any], seed: int = 0) -> list[lb.Datum]:
    """A datum for each [length, layers, WIDTH] of experts, sent there; for a number, one of so many tokens that the model routes."""
    drawn = np.random.default_rng(seed)
    datums = []
    for route in routes:
        length = route if isinstance(route, int) else len(route)
        tokens = drawn.integers(0, 250, length + 1).tolist()
        matrices = None if isinstance(route, int) else encode_routing(route)
        weights = drawn.uniform(0.5, 1.5, length)
        inputs = {"target_tokens": tokens[1:], "weights": weights}
        datums.append(lb.Datum(lb.ModelInput.from_ints(tokens[:-1], matrices), inputs))
    return datums


def logprobs_of(training: Any, datums: list[lb.Datum]) -> list[np.ndarray]:
    outputs = training.forward(datums, "cross_entropy").result().loss_fn_outputs
    return [output["logprobs"].to_numpy() for output in outputs]


def gradient(training: TrainingClient, datums: list[lb.Datum], loss: Any = "cross_entropy") -> dict[str, Tensor]:
    training.forward_backward(datums, loss).result()
    own = copied_gradients(training)
    training.discard_gradients().result()
    return own


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 2e-6) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], atol=atol, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def mixed_datums(layers: int) -> list[lb.Datum]:
    """Datums sent to experts wholly, from the fifth token on, and not at all; two begin with the same tokens sent elsewhere."""
    first, second, third, fourth = routes_for([24, 24, 11, 8], layers, seed=1)
    third[:4] = -1
    datums = datums_with([first, second, third, 9, fourth])
    tokens = [*datums[0].model_input.to_ints()[:20], 5, 6, 7, 8]
    datums[1] = lb.Datum(lb.ModelInput.from_ints(tokens, encode_routing(second)), datums[1].loss_fn_inputs)
    return datums
