"""Custom losses of a session: kept over a restart, of that session alone, with the numbers of the built-in loss they write down."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from lossbook.integrations.serve.refusals import Refused

from ..graphs.encoding import uploaded
from .server import OWNER, Client, Model, opened


def weighted(logprobs: torch.Tensor, weights: torch.Tensor) -> Any:
    return -(logprobs * weights).sum(), {"custom/weight:sum": weights.sum()}


def upload(client: Client, number: int = 0) -> dict[str, Any]:
    graph, inputs = uploaded(weighted, {"logprobs": 1, "weights": 1})
    return {
        "session_id": client.session_id,
        "custom_loss_seq_id": number,
        "name": "weighted",
        "inputs": inputs,
        "graph": graph,
    }


def test_a_custom_loss_is_the_loss_that_it_writes_down_and_outlives_a_restart(tmp_path: Path) -> None:
    async def before() -> tuple[Client, str]:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            model, other = await client.model(0), await client.model(1)
            ids = [(await client.ask("create_custom_loss", upload(client)))["loss_id"] for _ in range(2)]
            assert ids[0] == ids[1]
            custom = await model.metrics(
                await model.backward(loss="custom", config={"loss_id": ids[0]}, loss_id=ids[0])
            )
            named = await other.metrics(await other.backward())
            assert custom["loss:sum"] == pytest.approx(named["loss:sum"], rel=1e-6)
            assert custom["custom/weight:sum"] == 6.0
            await model.step()
            await other.step()
            assert await model.train(1) == pytest.approx(await other.train(1), rel=1e-5)
            return client, ids[0]

    async def after(client: Client, loss_id: str) -> None:
        async with opened(tmp_path) as desk:
            client.desk = desk
            model = Model(client, f"{client.session_id}:train:0", 4)
            await model.metrics(await model.backward(loss="custom", loss_id=loss_id))
            await desk.finish(OWNER, client.session_id)
            stranger = await (await Client.begin(desk)).model()
            message, category = await stranger.error(await stranger.backward(loss="custom", loss_id=loss_id))
            assert category == "user"
            assert "in this session" in message
            with pytest.raises(Refused):
                await client.submit("create_custom_loss", upload(client, 1))

    asyncio.run(after(*asyncio.run(before())))


def test_a_graph_that_is_refused_fails_its_future_and_names_the_operation(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            asked = upload(client)
            asked["graph"]["nodes"][-2]["target"] = "torch.hub.load"
            asked["graph"]["nodes"][-2]["op"] = "call_function"
            answer = await client.answer(await client.submit("create_custom_loss", asked))
            assert answer.category == "user"
            assert "torch.hub.load" in str(answer.error)

    asyncio.run(main())
