"""Gradients, seen through one step that is proportional to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..formulas import BUILT_INS
from ..promises import promise
from ..server import Server, logprobs_of, loss_of
from .values import input_of, with_weights


@promise(
    "gradient.batching",
    "The gradient does not depend on how a batch is cut into calls, nor on the order of its datums.",
    "a mean over a call's datums or tokens, a gradient that a call replaces instead of adding to",
)
def batching(server: Server) -> str:
    def one_by_one(client: Any) -> None:
        for one in reversed(server.data):
            server.backward(client, [one])
        server.step(client)

    def in_two(client: Any) -> None:
        server.backward(client, server.data[1:])
        server.backward(client, server.data[:1])
        server.step(client)

    server.same_step(server.after(in_two), server.baseline(), "two calls and one")
    return server.same_step(server.after(one_by_one), server.baseline(), f"{len(server.data)} calls and one")


@promise(
    "gradient.sum",
    "The gradient is of the sum: a datum twice, or with weights of 2, moves the weights as a step of twice the size does.",
    "a division by tokens, weights or datums, also at the step; an eps of AdamW that is not the one that was sent",
)
def gradient_is_a_sum(server: Server) -> str:
    half = [one.having(weights=0.5 * one.inputs["weights"]) for one in server.data]

    def halved(client: Any) -> None:
        server.backward(client, half)
        server.step(client, 2.0)

    def twice(client: Any) -> None:
        server.backward(client, [*server.data, *server.data])
        server.step(client, 0.5)

    server.same_step(server.after(twice), server.baseline(), "each datum twice, half the step")
    return server.same_step(server.after(halved), server.baseline(), "half the weights, twice the step")


@promise(
    "gradient.weights",
    "The gradient is linear in weights, also in negative and fractional ones.",
    "weights read as a mask or as whole numbers, or dropped where they are not positive",
)
def linear_in_weights(server: Server) -> str:
    drawn = with_weights(server, "linear")
    rest = [
        one.having(weights=one.inputs["weights"] - other.inputs["weights"])
        for one, other in zip(server.data, drawn, strict=True)
    ]

    def calls(client: Any) -> None:
        server.backward(client, drawn)
        server.backward(client, rest)
        server.step(client)

    return server.same_step(server.after(calls), server.baseline(), "weights w + (1 - w) and 1")


@promise(
    "gradient.multi_target",
    "Targets of [N, K] have the gradient of K calls with one target each.",
    "weights of [N, K] summed or cut before the backward",
    optional=True,
)
def many_targets(server: Server) -> str:
    material, width = server.material("targets"), 2
    wide, columns = [], [[], []]
    for one in server.data:
        targets = np.stack([one.targets, material.tokens(len(one))], 1)
        weights = material.rng.uniform(0.2, 1, targets.shape).astype(np.float32)
        wide.append(one.having(target_tokens=targets, weights=weights))
        for k in range(width):
            columns[k].append(one.having(target_tokens=targets[:, k], weights=weights[:, k]))

    def together(client: Any) -> None:
        server.backward(client, wide)
        server.step(client)

    def apart(client: Any) -> None:
        for column in columns:
            server.backward(client, column)
        server.step(client)

    return server.same_step(server.after(together), server.after(apart), "K targets at once and one by one")


def _gradient_of(loss: str) -> Callable[[Server], str]:
    def check(server: Server) -> str:
        built_in = BUILT_INS[loss]
        logprobs = logprobs_of(server.forward(server.client(), server.data))
        data = input_of(server, loss, logprobs)
        shipped = []
        for one, own in zip(data, logprobs, strict=True):
            derivative = built_in.formula(own, one.inputs, built_in.config)[1]
            shipped.append(one.only(weights=(-derivative).astype(np.float32)))

        def by_name(client: Any) -> None:
            server.backward(client, data, loss, **built_in.config)
            server.step(client)

        def by_weights(client: Any) -> None:
            server.backward(client, shipped)
            server.step(client)

        return server.same_step(
            server.after(by_name), server.after(by_weights), f"{loss} and its derivative as weights"
        )

    return check


for _name in BUILT_INS:
    if _name != "cross_entropy":
        promise(
            f"gradient.{_name}",
            f"{_name} has the gradient of its public formula: that of cross_entropy with weights -dL/dlogprob.",
            "what the gradient goes through: ratios that must be detached, bounds that must cut it off",
            optional=True,
        )(_gradient_of(_name))


@promise(
    "gradient.custom",
    "forward_backward_custom with a built-in's formula has its loss and its gradient.",
    "the second pass: weights of -dC/dlogprob, negative ones too; logprobs of positions of weight 0",
)
def custom_equals_built_in(server: Server) -> str:
    weights = [one.inputs["weights"] for one in server.data]
    outputs = []

    def cross_entropy(data: list[Any], logprobs_list: list[Any]) -> Any:
        losses = [-(own * own.new_tensor(row)).sum() for own, row in zip(logprobs_list, weights, strict=True)]
        loss: Any = sum(losses[1:], losses[0])
        return loss, {"loss:sum": float(loss.detach())}

    def calls(client: Any) -> None:
        outputs.append(server.answer(client.forward_backward_custom(server.datums(server.data), cross_entropy)))
        server.step(client)

    figure = server.same_step(server.after(calls), server.baseline(), "custom and built-in")
    expected = loss_of(server.forward(server.client(), server.data))
    server.equal(loss_of(outputs[0]), expected, "loss of custom and built-in", abs(expected))
    return figure


@promise(
    "gradient.traced",
    "A loss uploaded by create_custom_loss has the loss and the gradient of the same formula built in.",
    "the graph's interpreter; inputs by rank; the sum over datums",
    optional=True,
)
def traced_equals_built_in(server: Server) -> str:
    logprobs = logprobs_of(server.forward(server.client(), server.data))
    data = input_of(server, "importance_sampling", logprobs)
    renamed = [one.only(sampler_logprobs=one.inputs["logprobs"], advantages=one.inputs["advantages"]) for one in data]

    def conform_importance_sampling(logprobs: Any, sampler_logprobs: Any, advantages: Any) -> Any:
        loss = -((logprobs - sampler_logprobs).exp() * advantages).sum()
        return loss, {"custom/conform:sum": loss}

    ranks = {"logprobs": 1, "sampler_logprobs": 1, "advantages": 1}
    handle = server.answer(server.service.create_custom_loss(conform_importance_sampling, ranks))
    outputs = []

    def traced(client: Any) -> None:
        outputs.append(server.answer(client.forward_backward_custom(server.datums(renamed), handle)))
        server.step(client)

    def built_in(client: Any) -> None:
        outputs.append(server.backward(client, data, "importance_sampling"))
        server.step(client)

    figure = server.same_step(server.after(traced), server.after(built_in), "traced and built-in")
    value = loss_of(outputs[1])
    server.equal(outputs[0].metrics.get("custom/conform:sum", np.nan), value, "metric of the traced loss", abs(value))
    return figure
