"""Models go to the disk and come back as they were; after a stop all goes on, and after a crash it is said what is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from lossbook.integrations.serve.desk import Desk
from lossbook.integrations.serve.refusals import Refused

from .server import OWNER, Client, Model, opened, started


def test_models_that_go_to_the_disk_between_their_requests_train_on_bit_for_bit(tmp_path: Path) -> None:
    async def main(models_in_memory: int) -> list[list[float]]:
        async with opened(tmp_path / str(models_in_memory), models_in_memory=models_in_memory) as desk:
            client = await Client.begin(desk)
            models = [await client.model(i, seed=i) for i in range(3)]
            losses: list[list[float]] = [[], [], []]
            for _ in range(2):
                backward = [await model.backward() for model in models]  # gradients wait on the disk, too
                for model, own, request_id in zip(models, losses, backward, strict=True):
                    own.append((await model.metrics(request_id))["loss:sum"])
                for model in models:
                    await client.answer(await model.step())
            states = [one["state"] for one in desk.status()["models"]]
            assert states.count("in memory") == min(models_in_memory, 3)
        return losses

    assert asyncio.run(main(1)) == asyncio.run(main(8))


def test_a_model_that_nobody_asks_for_goes_to_the_disk(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, idle_seconds=0.05) as desk:
            model = await (await Client.begin(desk)).model()
            first = await model.train(1)
            while desk.status()["models"][0]["state"] != "parked":
                await asyncio.sleep(0.05)
            assert await model.train(1) != first

    asyncio.run(main())


def test_after_a_stop_models_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    losses: list[list[float]] = []

    async def main(root: Path, *, stops: bool) -> None:
        async with opened(root) as desk:
            client = await Client.begin(desk)
            model = await client.model()
            own = await model.train(2)
            backward = await model.backward()
            sampler = (await client.ask("save_weights_for_sampler", _snapshot(model)))["sampling_session_id"]
            model.number += 1
            if not stops:
                await client.answer(await model.step())
                losses.append(own + await model.train(1))
                return
        async with opened(root) as desk:
            client = model.client = Client(desk, client.session_id)
            await model.metrics(backward)  # the answer is still there
            await client.answer(await client.submit("sample", _sample(sampler)))
            assert (await client.answer(await model.step())).error is None
            losses.append(own + await model.train(1))
            assert await desk.get_info(OWNER, model.model_id)
            await desk.heartbeat(OWNER, client.session_id)

    asyncio.run(main(tmp_path / "a", stops=False))
    asyncio.run(main(tmp_path / "b", stops=True))
    assert losses[0] == losses[1]


def test_a_stop_fails_what_could_not_run_and_takes_nothing_more(tmp_path: Path) -> None:
    async def main() -> None:
        desk = await started(tmp_path)
        client = await Client.begin(desk)
        model = await client.model()
        ready, waiting = await model.backward(), await model.step(number=9)
        closing = asyncio.create_task(desk.close(grace=30))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await model.step(number=2)
        assert refused.value.status == 503
        assert refused.value.retry_after
        await closing
        assert (await client.answer(ready)).error is None
        failed = await client.answer(waiting)
        assert failed.category == "server"
        assert "the server was stopped before this ran" in str(failed.error)
        with pytest.raises(Refused) as refused:
            await desk.heartbeat(OWNER, client.session_id)
        assert refused.value.status == 503
        assert (
            await desk.retrieve(OWNER, "x" * 22, 0.01) is None
        )  # whether there is such an answer, the next server says

    asyncio.run(main())


def test_a_step_does_not_follow_a_backward_that_the_stop_failed(tmp_path: Path) -> None:
    async def before() -> tuple[Model, str]:
        async with opened(tmp_path) as desk:
            model = await (await Client.begin(desk)).model()
            await model.train(1)
            return model, await model.backward(number=4)  # request 3 is on its way

    async def after(model: Model, failed: str) -> None:
        async with opened(tmp_path) as desk:
            model.client.desk = desk
            message, category = await model.error(await model.step(number=5))
            assert category == "server"
            assert message.startswith("not run: forward_backward (request 4) before it failed: the server was stopped")
            await model.error(failed)
            model.number = 5
            await model.train(1)

    asyncio.run(after(*asyncio.run(before())))


def test_after_a_crash_what_was_in_memory_alone_is_lost_and_names_the_checkpoint(tmp_path: Path) -> None:
    async def before() -> tuple[str, list[Model], list[str], list[float]]:
        desk = await started(tmp_path)
        client = await Client.begin(desk)
        lost, saved, untouched = models = [await client.model(i, seed=i) for i in range(3)]
        for model in (lost, saved):
            await model.train(1)
            model.number += 1
            await client.ask("save_weights", {"model_id": model.model_id, "seq_id": model.number, "path": "mine"})
        await lost.train(1)
        expected = await Model(client, (await _copy(client, saved)).model_id).train(1)
        sampler = (await client.ask("save_weights_for_sampler", _snapshot(untouched)))["sampling_session_id"]
        untouched.number += 1
        waiting = await saved.step(number=9)
        await settled_but_for(desk, 1)
        desk.ledger.close()  # lets go of the file, as the end of a process does; nothing else is closed
        return client.session_id, models, [sampler, waiting], expected

    async def after(session_id: str, models: list[Model], ids: list[str], expected: list[float]) -> None:
        async with opened(tmp_path) as desk:
            client = Client(desk, session_id)
            for model in models:
                model.client = client
            lost, saved, untouched = models
            sampler, waiting = ids
            error, category = await lost.error(await lost.backward())
            assert category == "server"
            assert f"tinker://{lost.model_id}/weights/mine" in error
            assert str(tmp_path) not in error
            with pytest.raises(Refused, match="was lost"):
                await desk.get_info(OWNER, lost.model_id)
            error, category = await saved.error(waiting)
            assert category == "server"
            assert await saved.train(1) == expected
            await untouched.train(1)
            failed = await client.answer(await client.submit("sample", _sample(sampler)))
            assert failed.category == "server"
            assert "weights in memory" in str(failed.error)

    async def later(lost: Model, session_id: str) -> None:
        async with opened(tmp_path) as desk:
            lost.client = Client(desk, session_id)
            error, category = await lost.error(await lost.backward())
            assert category == "server"
            assert f"tinker://{lost.model_id}/weights/mine" in error

    session_id, models, ids, expected = asyncio.run(before())
    asyncio.run(after(session_id, models, ids, expected))
    asyncio.run(later(models[0], session_id))


async def _copy(client: Client, model: Model) -> Model:
    """A new model of the checkpoint `mine` of another."""
    path = f"tinker://{model.model_id}/weights/mine"
    fields = {"session_id": client.session_id, "model_seq_id": 7, "path": path, "optimizer": True}
    return Model(client, (await client.ask("load_weights", fields))["model_id"])


async def settled_but_for(desk: Desk, waiting: int) -> None:
    """Wait until so many requests wait and none runs."""
    while len(desk.scheduler.queue) > waiting or desk.scheduler.running:
        await asyncio.sleep(0.01)


def _snapshot(model: Model) -> dict[str, object]:
    return {"model_id": model.model_id, "seq_id": model.number + 1, "sampling_session_seq_id": 0}


def _sample(sampler: str, number: int = 0) -> dict[str, object]:
    return {
        "sampling_session_id": sampler,
        "seq_id": number,
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [3, 4, 5]}]},
        "sampling_params": {"max_tokens": 4, "seed": 1, "stop": []},
    }
