"""The values of losses, and of logprobs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..formulas import BUILT_INS
from ..material import Example
from ..promises import promise
from ..server import Server, logprobs_of, loss_of


def with_weights(server: Server, name: str) -> list[Example]:
    """The data with real numbers for weights."""
    material = server.material(name)
    return [one.having(weights=material.real_weights(one)) for one in server.data]


def input_of(server: Server, loss: str, logprobs: list[np.ndarray]) -> list[Example]:
    """The data as that loss reads it."""
    if loss == "cross_entropy":
        return with_weights(server, loss)
    material = server.material("rollouts")
    rollouts = [material.rollout(one, own) for one, own in zip(server.data, logprobs, strict=True)]
    if loss != "gspo":
        return rollouts
    masks = [(np.arange(len(one)) >= 1).astype(np.float32) for one in rollouts]
    return [one.having(sequence_ratio_mask=mask) for one, mask in zip(rollouts, masks, strict=True)]


@promise(
    "loss.sum",
    "The loss of a call is a sum over tokens and datums: that of several datums is the sum of what each gives alone.",
    "the reduction: no division by tokens, weights or datums, in the server or in its engine",
)
def loss_is_a_sum(server: Server) -> str:
    client, data = server.client(), [*server.data, server.data[0]]
    whole = server.forward(client, data)
    alone = [loss_of(server.forward(client, [one])) for one in data]
    size = sum(abs(one) for one in alone)
    server.equal(loss_of(whole), sum(alone), "together and alone", size)
    logprobs = logprobs_of(whole)
    summed = -sum(float((one.inputs["weights"] * own).sum()) for one, own in zip(data, logprobs, strict=True))
    return server.equal(loss_of(whole), summed, "loss:sum and the sum over tokens", size)


@promise(
    "loss.weights",
    "A weight is a factor: fractions, negative numbers and zeros count as what they are.",
    "weights read as a mask or as whole numbers, or dropped where they are not positive",
)
def weights_are_factors(server: Server) -> str:
    client, data = server.client(), with_weights(server, "weights")
    output = server.forward(client, data)
    terms = [own * one.inputs["weights"] for one, own in zip(data, logprobs_of(output), strict=True)]
    size = float(np.abs(np.concatenate(terms)).sum())
    server.equal(loss_of(output), -np.concatenate(terms).sum(), "loss and -sum of weight x logprob", size)
    ones = [one.having(weights=np.ones(len(one), np.float32)) for one in data]
    every = np.concatenate(logprobs_of(server.forward(client, ones)))
    server.equal(np.concatenate(logprobs_of(output)), every, "logprobs under any weights")
    return server.equal(loss_of(output), -np.concatenate(terms).sum(), "loss and -sum of weight x logprob", size)


@promise(
    "loss.no_side_effect",
    "A forward leaves no gradient behind.",
    "forward_only handled as forward_backward",
)
def forward_has_no_gradient(server: Server) -> str:
    def calls(client: object) -> None:
        server.backward(client, server.data)
        server.forward(client, server.data)
        server.step(client)

    return server.same_step(server.after(calls), server.baseline(), "with a forward between")


@promise(
    "loss.multi_target",
    "Targets of [N, K] give logprobs of [N, K], each that of its target alone, and a loss summed over all of them.",
    "flattened targets, or one target per position taken; sparse tensors that were not filled up",
    optional=True,
)
def many_targets(server: Server) -> str:
    client, material, width = server.client(), server.material("targets"), 3
    wide, columns = [], []
    for one in server.data:
        targets = np.stack([one.targets, *(material.tokens(len(one)) for _ in range(width - 1))], 1)
        weights = material.rng.normal(size=targets.shape).astype(np.float32)
        wide.append(one.having(target_tokens=targets, weights=weights))
        columns.append([one.having(target_tokens=targets[:, k]) for k in range(width)])
    output = server.forward(client, wide)
    logprobs = logprobs_of(output)
    for one, own, apart in zip(wide, logprobs, columns, strict=True):
        alone = logprobs_of(server.forward(client, apart))
        server.equal(own, np.stack([each.reshape(-1) for each in alone], 1), "logprobs of [N, K] and of each target")
        del one
    terms = np.concatenate([(own * one.inputs["weights"]).reshape(-1) for one, own in zip(wide, logprobs, strict=True)])
    return server.equal(loss_of(output), -terms.sum(), "loss over all targets", float(np.abs(terms).sum()))


def _value_of(loss: str) -> Callable[[Server], str]:
    def check(server: Server) -> str:
        built_in, client = BUILT_INS[loss], server.client()
        logprobs = logprobs_of(server.forward(client, server.data))
        data = input_of(server, loss, logprobs)
        output = server.forward(client, data, loss, **built_in.config)
        terms = [
            built_in.formula(own, one.inputs, built_in.config)[0]
            for one, own in zip(data, logprobs_of(output), strict=True)
        ]
        every = np.concatenate(terms)
        return server.equal(loss_of(output), every.sum(), "loss and formula", float(np.abs(every).sum()))

    return check


for _name in BUILT_INS:
    promise(
        f"loss.{_name}",
        f"{_name} has the value of its public formula at the logprobs that come back with it.",
        f"the formula of {_name}, names and defaults of its settings, which positions are summed",
        optional=_name != "cross_entropy",
    )(_value_of(_name))
