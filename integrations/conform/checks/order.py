"""Calls run in their order, and what a step does beside moving weights."""

from __future__ import annotations

from typing import Any

from ..promises import promise
from ..server import Server


@promise(
    "order.queued",
    "Calls run in the order in which they were made, also where none is waited for.",
    "requests of one model run side by side, or by the time at which they were read rather than by their number",
)
def queued_calls(server: Server) -> str:
    first, second = server.datums(server.data[:1]), server.datums(server.data[1:])
    step = server.api.AdamParams(**server.adam())

    def waited(client: Any) -> None:
        for datums in (first, second):
            server.answer(client.forward_backward(datums, "cross_entropy"))
            server.answer(client.optim_step(step))

    def queued(client: Any) -> None:
        futures = []
        for datums in (first, second):
            futures += [client.forward_backward(datums, "cross_entropy"), client.optim_step(step)]
        for future in futures:
            server.answer(future)

    return server.same_step(server.after(queued), server.after(waited), "queued and one by one")


@promise(
    "step.clears",
    "A step clears the gradient: the next one is of what came after it.",
    "gradients that are kept over a step",
)
def step_clears(server: Server) -> str:
    other = server.probe

    def twice(client: Any) -> None:
        server.backward(client, other)
        server.step(client, 0.0, beta1=0.0, beta2=0.0)
        server.backward(client, server.data)
        server.step(client, beta1=0.0, beta2=0.0)

    return server.same_step(server.after(twice), server.baseline(), "after a step of size 0 on other data")


@promise(
    "step.rate_zero",
    "A step of learning rate 0 moves no weight, and counts: the optimizer's moments and its number of steps go on.",
    "steps of learning rate 0 that are skipped; a step count that weights alone drive",
)
def rate_zero_counts(server: Server) -> str:
    against = [one.having(weights=-one.inputs["weights"]) for one in server.data]

    def idle(client: Any) -> None:
        server.backward(client, against)
        server.step(client, 0.0)

    server.equal(server.after(idle), server.start, "logprobs before and after a step of rate 0")

    def after_it(client: Any) -> None:
        server.backward(client, against)
        server.step(client, 0.0, beta1=0.5)
        server.backward(client, server.data)
        server.step(client, 3.0, beta1=0.5)

    # With beta1 = 1/2 the first moment is (-g/4 + g/2) / (1 - 1/4) = g/3: three times the step is the plain one.
    return server.same_step(server.after(after_it), server.baseline(), "after -g at rate 0, g at three times the rate")
