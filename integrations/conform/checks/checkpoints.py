"""Snapshots and checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..promises import Broken, promise
from ..server import Server
from .sampling import line, moved, scored


def trained_on(server: Server, client: Any) -> None:
    """A further step, on other data."""
    server.backward(client, server.probe)
    server.step(client)


def _must_have_moved(server: Server, one: np.ndarray, other: np.ndarray) -> float:
    apart = float(np.abs(one - other).max())
    if apart < 2 * server.settings.tolerance:
        raise Broken(f"a new sampler's logprobs are those from before the step (they differ by {apart:.2g})")
    return apart


@promise(
    "snapshot.fixed",
    "A sampler of a client's weights does not follow later training, and a new one has the new weights.",
    "samplers that share the weights in training; caches of prefixes that outlive their weights",
)
def snapshot_is_fixed(server: Server) -> str:
    client = moved(server)
    sampler = server.sampler(client)
    before = scored(server, sampler, line(server))
    for _ in range(2):
        trained_on(server, client)
    figure = server.equal(scored(server, sampler, line(server)), before, "before and after two further steps")
    apart = _must_have_moved(server, scored(server, server.sampler(client), line(server)), before)
    return f"{figure}; a new sampler's by {apart:.2g}"


@promise(
    "snapshot.saved",
    "Weights saved for a sampler by name are those of that moment.",
    "a path that stands for the client's weights rather than for a copy",
)
def saved_sampler(server: Server) -> str:
    client = moved(server)
    path = server.answer(client.save_weights_for_sampler("conform-sampler")).path
    before = scored(server, server.sampler(client), line(server))
    for _ in range(2):
        trained_on(server, client)
    saved = server.answer(server.service.create_sampling_client(model_path=path))
    figure = server.equal(scored(server, saved, line(server)), before, "saved, and sampled from at once")
    _must_have_moved(server, scored(server, server.sampler(client), line(server)), before)
    return figure


@promise(
    "checkpoint.weights",
    "A client made from a state has its weights, and an optimizer that begins anew.",
    "weights that went on after the save; moments that are loaded too",
)
def state_without_optimizer(server: Server) -> str:
    client = moved(server)
    path = server.answer(client.save_state("conform-weights")).path
    at_save = server.seen(client)
    trained_on(server, client)
    seen = []
    for beta in (0.9, 0.0):
        other = server.answer(server.service.create_training_client_from_state(path))
        figure = server.equal(server.seen(other), at_save, "logprobs at the save and of the new client")
        server.backward(other, server.data)
        server.step(other, beta1=beta, beta2=beta)
        seen.append(server.seen(other))
    # The first step of AdamW does not depend on its betas; a later one does.
    server.same_step(seen[0], seen[1], "a first step with and without moments")
    return figure


@promise(
    "checkpoint.optimizer",
    "A client made from a state with its optimizer takes the step that the saved one takes.",
    "moments or the step count that are not saved; gradients that were pending",
)
def state_with_optimizer(server: Server) -> str:
    client = moved(server)
    path = server.answer(client.save_state("conform-optimizer")).path
    other = server.answer(server.service.create_training_client_from_state_with_optimizer(path))
    seen = []
    for one in (client, other):
        trained_on(server, one)
        seen.append(server.seen(one))
    return server.same_step(seen[1], seen[0], "the next step of both")
