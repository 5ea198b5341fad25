"""Mistakes are refused soon, change nothing, and leave the client usable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..promises import promise
from ..server import Server


def _goes_on(server: Server, mistake: Callable[[Any], Any], what: str) -> str:
    """The mistake is refused; the client goes on, and its next step is the plain one.

    A pass lies between: a server may refuse the step that comes right behind a failed backward, which its client may have sent
    before it knew.
    """
    figures = []

    def calls(client: Any) -> None:
        server.backward(client, server.data)
        figures.append(server.refused(lambda: mistake(client), what))
        server.forward(client, server.data[:1])
        server.step(client)

    server.same_step(server.after(calls), server.baseline(), f"{figures[-1] if figures else what}, then a step")
    return f"{figures[-1]}; the client goes on"


@promise(
    "error.loss",
    "An unknown loss is an error within seconds, and leaves the client and its gradient as they were.",
    "failed futures answered by 5xx or 400; a number that is waited for in vain",
)
def unknown_loss(server: Server) -> str:
    datums = server.datums(server.data[:1])
    return _goes_on(server, lambda client: client.forward_backward(datums, "conform_no_such_loss"), "an unknown loss")


@promise(
    "error.shape",
    "Targets of another length than the input are an error within seconds, and change nothing.",
    "checks after the first backward, so that half a batch stays in the gradient",
)
def wrong_shape(server: Server) -> str:
    first = server.data[0]
    short = first.having(target_tokens=first.targets[:-2], weights=first.inputs["weights"][:-2])

    def mistake(client: Any) -> Any:
        return client.forward_backward(server.datums([server.data[1], short]), "cross_entropy")

    return _goes_on(server, mistake, "two targets too few")


@promise(
    "error.token",
    "A token id beyond the vocabulary is an error within seconds, and changes nothing.",
    "ids that reach the embedding; on a GPU that ends the process",
)
def unknown_token(server: Server) -> str:
    first = server.data[0]
    tokens = np.array(first.tokens)
    tokens[1] = 2**31 - 2
    wrong = type(first)(tokens, first.inputs)

    def mistake(client: Any) -> Any:
        return client.forward_backward(server.datums([server.data[1], wrong]), "cross_entropy")

    return _goes_on(server, mistake, "token id 2147483646")


@promise(
    "error.input",
    "A datum without an input that its loss reads is an error within seconds, and changes nothing.",
    "missing inputs read as zeros",
)
def missing_input(server: Server) -> str:
    datums = server.datums(server.data[:1])
    return _goes_on(server, lambda client: client.forward_backward(datums, "importance_sampling"), "no advantages")


@promise(
    "error.path",
    "A checkpoint that is not there is an error within seconds.",
    "a client that waits for a model which will never be made",
)
def unknown_path(server: Server) -> str:
    return server.refused(
        lambda: server.service.create_training_client_from_state("tinker://conform:train:0/weights/no-such-state"),
        "an unknown checkpoint",
    )
