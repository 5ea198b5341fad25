"""Desks to test, and requests as `wire` reads them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from lossbook.integrations.serve.desk import Desk
from lossbook.integrations.serve.ledger import Ledger
from lossbook.integrations.serve.operations import Answer, Operation, OperationKind
from lossbook.integrations.serve.settings import ServeSettings
from lossbook.integrations.serve.wire.fields import parsed
from lossbook.integrations.serve.wire.messages import messages
from lossbook.integrations.serve.wire.requests import (
    CreateCustomLoss,
    CreateModel,
    LoadWeights,
    OptimStep,
    SaveWeights,
    SaveWeightsForSampler,
)
from lossbook.integrations.serve.wire.samples import Sample
from lossbook.integrations.serve.wire.training import ForwardBackward
from lossbook.integrations.tinker.types import Datum, ModelInput

OWNER = "local"
MODELS: dict[str, Any] = {
    "create_custom_loss": CreateCustomLoss,
    "create_model": CreateModel,
    "load_weights": LoadWeights,
    "optim_step": OptimStep,
    "save_weights": SaveWeights,
    "save_weights_for_sampler": SaveWeightsForSampler,
    "sample": Sample,
}
#: Scope, number and counter of each kind of request.
PLACES: dict[str, tuple[str, str, Any]] = {
    "create_custom_loss": ("session_id", "custom_loss_seq_id", "loss"),
    "create_model": ("session_id", "model_seq_id", "model"),
    "sample": ("sampling_session_id", "seq_id", "sample"),
}


def settings(root: Path, **changes: Any) -> ServeSettings:
    """A server's settings in a folder."""
    return ServeSettings(root=root, models={"tiny": "tiny", "other": "tiny"}, **changes)


@contextlib.asynccontextmanager
async def opened(root: Path, **changes: Any) -> AsyncIterator[Desk]:
    """A desk that is closed in the end."""
    desk = await started(root, **changes)
    try:
        yield desk
    finally:
        await desk.close(grace=5)


async def started(root: Path, kind: type[Ledger] = Ledger, **changes: Any) -> Desk:
    """A desk that runs, and that nobody closes. kind: of its ledger."""
    root.mkdir(parents=True, exist_ok=True)
    given = settings(root, **changes)
    desk = Desk(given, kind.of(given))
    await desk.start()
    return desk


def datum(tokens: list[int], **inputs: Any) -> Datum:
    """A sequence that is trained on at all its positions."""
    inputs = inputs or {"weights": [1.0] * (len(tokens) - 1)}
    read: dict[str, Any] = {"target_tokens": tokens[1:], **inputs}
    return Datum(ModelInput.from_ints(tokens[:-1]), read)


DATA = [datum([5, 6, 7, 8, 9]), datum([9, 4, 3])]


class Client:
    """Asks a desk for things, as one owner."""

    def __init__(self, desk: Desk, session_id: str, owner: str = OWNER) -> None:
        self.desk, self.session_id, self.owner = desk, session_id, owner

    @classmethod
    async def begin(cls, desk: Desk, owner: str = OWNER) -> Client:
        """A client with a session of its own."""
        return cls(desk, await desk.create_session(owner), owner)

    async def submit(self, kind: OperationKind, fields: dict[str, Any], payload: Any = None) -> str:
        """A request's id."""
        scope, number, counter = PLACES.get(kind, ("model_id", "seq_id", "seq"))
        if kind == "load_weights" and "session_id" in fields:
            scope, number, counter = PLACES["create_model"]
        digest = hashlib.sha256(json.dumps([kind, fields], sort_keys=True, default=str).encode()).hexdigest()
        request = payload if payload is not None else parsed(MODELS[kind], fields, self.desk.settings.limits)
        operation = Operation(self.owner, kind, fields[scope], fields[number], counter, digest, request)
        return await self.desk.submit(operation)

    async def answer(self, request_id: str, hold: float = 120) -> Answer:
        """What a request came to."""
        answer = await self.desk.retrieve(self.owner, request_id, hold)
        assert answer is not None, f"nothing came of {request_id}"
        return answer

    async def ask(self, kind: OperationKind, fields: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer of a request that works."""
        answer = await self.answer(await self.submit(kind, fields))
        assert answer.error is None, answer.error
        return json.loads(answer.body)

    async def model(self, number: int = 0, base_model: str = "tiny", seed: int | None = 7) -> Model:
        """A new model."""
        lora = {"rank": 4, "seed": seed}
        fields = {"session_id": self.session_id, "model_seq_id": number, "base_model": base_model, "lora_config": lora}
        return Model(self, (await self.ask("create_model", fields))["model_id"])


class Model:
    """Trains a model of a client."""

    def __init__(self, client: Client, model_id: str, number: int = 0) -> None:
        self.client, self.model_id, self.number = client, model_id, number

    async def send(self, kind: OperationKind, payload: Any = None, number: int | None = None, **fields: Any) -> str:
        """The id of the next request, or of one with a number of its own."""
        self.number = self.number + 1 if number is None else max(self.number, number)
        numbered = {"model_id": self.model_id, "seq_id": self.number if number is None else number, **fields}
        return await self.client.submit(kind, numbered, payload)

    async def backward(
        self, data: list[Datum] | None = None, loss: str = "cross_entropy", number: int | None = None, **fields: Any
    ) -> str:
        """A forward_backward."""
        data, kind = (
            DATA if data is None else data,
            "forward" if fields.pop("forward_only", False) else "forward_backward",
        )
        config = fields.pop("config", {})
        at = self.number + 1 if number is None else number
        payload = ForwardBackward(self.model_id, at, kind == "forward", loss, config, data, **fields)
        digest = {"loss": loss, "config": config, "data": repr([(one.model_input, one.loss_fn_inputs) for one in data])}
        return await self.send(kind, payload, number, **digest)

    async def step(self, learning_rate: float = 0.05, number: int | None = None) -> str:
        """An optim_step."""
        return await self.send("optim_step", None, number, adam_params={"learning_rate": learning_rate})

    async def metrics(self, request_id: str) -> dict[str, float]:
        """The metrics of a forward_backward that works."""
        return dict((await self.output(request_id)).metrics)

    async def output(self, request_id: str) -> Any:
        """The message of a forward_backward that works."""
        answer = await self.client.answer(request_id)
        assert answer.error is None, answer.error
        return messages().ForwardBackwardOutput.FromString(answer.body)

    async def error(self, request_id: str) -> tuple[str, str | None]:
        """How a request failed."""
        answer = await self.client.answer(request_id)
        assert answer.error is not None
        return answer.error, answer.category

    async def train(self, steps: int = 1) -> list[float]:
        """Losses of some steps."""
        losses = []
        for _ in range(steps):
            backward, step = await self.backward(), await self.step()
            losses.append((await self.metrics(backward))["loss:sum"])
            assert (await self.client.answer(step)).error is None
        return losses


async def settled(desk: Desk) -> None:
    """Wait until nothing waits and nothing runs."""
    while len(desk.scheduler.queue) or desk.scheduler.running:
        await asyncio.sleep(0.01)
