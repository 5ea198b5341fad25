"""Requests that arrive twice, as they do where an answer was lost. The SDK cannot be made to send them, so they are raw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..promises import Broken, DoesNotApply, promise
from ..server import Server
from ..wire import RawModel, Wire


def _wire(server: Server) -> Wire:
    wire = server.wire()
    if wire is None:
        raise DoesNotApply("there is no HTTP, and so no lost answer")
    return wire


def _twice(server: Server, what: str, calls: Callable[[RawModel, int], int]) -> str:
    """`calls(model, times)` gives the next number; both arms start from one seed."""
    wire = _wire(server)
    if not server.repeats_seed:
        raise DoesNotApply("adapters of one seed differ, so that two raw models cannot be compared")
    seen = []
    for times in (1, 2):
        model = RawModel.made(wire, server.settings.model, server.settings.rank, server.settings.seed + 1)
        seen.append(model.logprobs(calls(model, times), server.probe))
    return server.same_step(seen[1], seen[0], what)


@promise(
    "retry.gradient",
    "A forward_backward that arrives twice under one number is counted once.",
    "the pair (model, seq_id) must be unique: the second gets the first one's answer",
    raw=True,
)
def gradient_once(server: Server) -> str:
    def calls(model: RawModel, times: int) -> int:
        model.forward_backward(1, server.data, times=times)
        model.optim_step(2, server.adam())
        return 3

    return _twice(server, "forward_backward sent twice and once", calls)


@promise(
    "retry.step",
    "An optim_step that arrives twice under one number is taken once.",
    "the pair (model, seq_id) must be unique: the second gets the first one's answer",
    raw=True,
)
def step_once(server: Server) -> str:
    def calls(model: RawModel, times: int) -> int:
        model.forward_backward(1, server.data)
        model.optim_step(2, server.adam(0.5), times=times)
        return 3

    return _twice(server, "optim_step sent twice and once", calls)


@promise(
    "retry.sample",
    "A sample that arrives twice under one number is drawn once.",
    "the pair (sampling session, seq_id) must be unique",
    raw=True,
)
def sample_once(server: Server) -> str:
    wire = _wire(server)
    session = wire.json("create_session", {"tags": [], "user_metadata": {}, "sdk_version": "0.38.0"})["session_id"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": server.settings.model}
    sampling = wire.json("create_sampling_session", {**body, "type": "create_sampling_session"})["sampling_session_id"]
    tokens = [int(token) for token in server.data[0].tokens]
    request = {
        "sampling_session_id": sampling,
        "seq_id": 0,
        "num_samples": 4,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens}]},
        "sampling_params": {"max_tokens": 6, "temperature": 1.0, "top_k": -1, "top_p": 1.0, "stop": []},
        "type": "sample",
    }
    answers = [wire.answer(wire.submitted("asample", request), protobuf=True) for _ in range(2)]
    drawn = [[one.tokens for one in wire.messages.SampleResponse.FromString(each).sequences] for each in answers]
    if drawn[0] != drawn[1]:
        raise Broken("the same request twice gave different samples")
    return f"the same {len(drawn[0])} samples twice"


@promise(
    "retry.answer",
    "An answer can be fetched again, since the first may have been lost.",
    "results that are dropped when they are first read",
    raw=True,
)
def answer_again(server: Server) -> str:
    wire = _wire(server)
    model = RawModel.made(wire, server.settings.model, server.settings.rank, server.settings.seed + 1)
    request_id = wire.submitted("forward_backward", model.request(1, server.data))
    answers = [wire.messages.ForwardBackwardOutput.FromString(wire.answer(request_id, protobuf=True)) for _ in range(2)]
    values = [one.metrics.get("loss:sum", np.nan) for one in answers]
    return server.equal(values[1], values[0], "loss:sum of both answers", abs(values[0]))
