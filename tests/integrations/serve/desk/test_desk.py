"""A desk runs what the in-process door runs, with the same numbers, once, in the client's order, and for its owner alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from lossbook.integrations import tinker
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.tinker import settings as door

from .server import DATA, OWNER, Client, Model, datum, opened, settled


@pytest.fixture
def in_process(tmp_path: Path) -> Any:
    """A model of the in-process door, of the seed that `Client.model` takes."""
    before = door.current().root
    door.configure(root=tmp_path / "door")
    with tinker.ServiceClient() as service:
        yield service.create_lora_training_client("tiny", rank=4, seed=7).result()
    door.configure(root=before)


def test_numbers_are_those_of_the_in_process_door(tmp_path: Path, in_process: Any) -> None:
    rl = [datum([5, 6, 7], logprobs=[-1.0, -2.0], advantages=[1.0, -0.5])]
    adam = tinker.AdamParams(learning_rate=0.05)
    expected: list[Any] = []
    for data, loss, config in [
        (DATA, "cross_entropy", None),
        (rl, "ppo", {"clip_low_threshold": 0.9}),
        (DATA, "poly1", None),
    ]:
        expected.append(in_process.forward_backward(data, loss, config).result())
        expected.append(in_process.optim_step(adam).result())
    expected.append(in_process.forward(DATA, "cross_entropy").result())

    async def main() -> None:
        async with opened(tmp_path / "serve") as desk:
            model = await (await Client.begin(desk)).model()
            sent = [await model.backward(), await model.step()]
            sent += [await model.backward(rl, "ppo", config={"clip_low_threshold": 0.9}), await model.step()]
            sent += [await model.backward(loss="poly1"), await model.step(), await model.backward(forward_only=True)]
            for mine, theirs in zip(sent[::2], expected[::2], strict=True):
                output = await model.output(mine)
                assert output.metrics["loss:sum"] == theirs.metrics["loss:sum"]
                fields = output.loss_fn_outputs[0].fields["logprobs"]
                own = torch.frombuffer(bytearray(fields.data), dtype=torch.float32)
                assert torch.equal(
                    own, torch.cat([one["logprobs"].to_torch().flatten() for one in theirs.loss_fn_outputs])
                )

    asyncio.run(main())


def test_models_in_turns_train_as_each_does_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            alone = [await (await client.model(i, seed=i)).train(3) for i in range(2)]
            models = [await client.model(10 + i, base, seed=i) for i, base in enumerate(("tiny", "other"))]
            together = await asyncio.gather(*(model.train(3) for model in models))
            assert together == alone

    asyncio.run(main())


def test_a_retry_has_the_first_request_and_runs_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            once, often = await client.model(0), await client.model(1)
            await once.train(2)
            ids = await asyncio.gather(*(often.backward(number=1) for _ in range(50)))
            ids += [await often.backward(number=1)]
            assert len(set(ids)) == 1
            steps = {await often.step(number=2), await often.step(number=2)}
            assert len(steps) == 1
            await often.client.answer(steps.pop())
            await often.train(1)
            assert await often.train(1) == await once.train(1)
            with pytest.raises(Refused, match="request 1") as refused:
                await often.step(number=1)
            assert refused.value.status == 400
            models = {await client.submit("create_model", _creation(client, 5)) for _ in range(2)}
            assert len(models) == 1
            await client.answer(models.pop())
            assert len(desk.status()["models"]) == 3

    asyncio.run(main())


def test_requests_that_arrive_backwards_run_by_number(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            model, other = await client.model(0), await client.model(1)
            step, second, first = (
                await model.step(number=3),
                await model.backward(DATA[1:], number=2),
                await model.backward(DATA[:1], number=1),
            )
            for request_id in (step, second, first):
                assert (await client.answer(request_id)).error is None
            await other.backward(DATA[:1])
            await other.backward(DATA[1:])
            await other.step()
            assert await model.train(1) == await other.train(1)

    asyncio.run(main())


def test_a_failed_request_changes_nothing_and_neither_does_what_was_sent_behind_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            model = await (await Client.begin(desk)).model()
            before = await model.metrics(await model.backward(forward_only=True))
            failed, behind = await model.backward(loss="ppoo"), await model.step()
            await settled(desk)
            late = await model.step()
            message, category = await model.error(failed)
            assert category == "user"
            assert "no loss is registered as 'ppoo'" in message
            assert "Did you mean 'ppo'" in message
            for request_id in (behind, late):
                assert await model.error(request_id) == (
                    f"not run: forward_backward (request 2) before it failed: {message}",
                    "user",
                )
                assert await model.error(request_id) == await model.error(request_id)
            assert await model.metrics(await model.backward(forward_only=True)) == before
            await model.train(1)
            assert desk.status()["queues"] == {"waiting": 0, "running": 0, "unfetched": 0}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        ("os:system", "A function of a module is not taken from clients"),
        ("stable_reinforce", "Whoever runs the server can choose a stand-in"),
        ("custom", "needs loss_fn_config"),
        ("ppo", "sampling_logprobs|logprobs"),
    ],
)
def test_a_loss_that_cannot_run_says_why(tmp_path: Path, loss: str, says: str) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            model = await (await Client.begin(desk)).model()
            message, category = await model.error(await model.backward(loss=loss))
            assert category == "user"
            assert any(words in message for words in says.split("|")), message

    asyncio.run(main())


def test_settings_of_losses_arrive_as_floats_and_are_what_they_mean(tmp_path: Path) -> None:
    data = [datum([5, 6, 7]), datum([5, 8, 7])]

    async def main() -> None:
        async with opened(tmp_path) as desk:
            model = await (await Client.begin(desk)).model()
            for config in ({"gamma": 2.0}, {"gamma": 0.5}):
                await model.metrics(await model.backward(data, "focal", config=config))
            message, _ = await model.error(await model.backward(data, "focal", config={"gama": 2.0}))
            assert "Did you mean 'gamma'" in message

    asyncio.run(main())


def test_a_request_that_never_comes_fails_those_after_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, gap_seconds=0.2) as desk:
            model = await (await Client.begin(desk)).model()
            message, category = await model.error(await model.step(number=2))
            assert category == "server"
            assert "request 1 of model" in message
            await desk.used_up(OWNER, model.model_id, "seq", 3)
            await model.metrics(await model.backward(number=4))

    asyncio.run(main())


def test_names_of_files_and_models_that_are_not_served_are_refused_without_paths(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            for base_model in ("tinny", "/etc", str(tmp_path)):
                answer = await client.answer(
                    await client.submit("create_model", _creation(client, len(base_model), base_model))
                )
                assert answer.category == "user"
                assert "is not served here" in str(answer.error)
            model = await client.model()
            for path in ("/etc/passwd", str(tmp_path), f"tinker://{model.model_id}/weights/none"):
                message, category = await model.error(await model.send("load_weights", path=path, optimizer=False))
                assert category == "user"
                assert str(tmp_path) not in message.replace(path, "")

    asyncio.run(main())


def test_what_belongs_to_one_owner_is_not_there_for_another(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client, other = await Client.begin(desk, "ann"), await Client.begin(desk, "bob")
            model, request_id = await client.model(), ""
            path = (await client.ask("save_weights", {"model_id": model.model_id, "seq_id": 1, "path": "a"}))["path"]
            request_id = await Model(client, model.model_id, 1).backward()
            theirs = Model(other, model.model_id)
            for call in (
                theirs.backward(),
                other.answer(request_id),
                desk.get_info("bob", model.model_id),
                desk.heartbeat("bob", client.session_id),
                desk.finish("bob", client.session_id),
                desk.create_sampling_session("bob", session_id=other.session_id, number=0, model_path=path),
                desk.rest("bob", lambda rest: rest.list_checkpoints(model.model_id)),
            ):
                with pytest.raises(Refused) as refused:
                    await call
                assert refused.value.status == 404, refused.value
            mine = await other.model()
            message, category = await mine.error(await mine.send("load_weights", path=path, optimizer=False))
            assert category == "user"
            assert "there is no training run" in message
            assert (await desk.rest("ann", lambda rest: rest.list_checkpoints(model.model_id))).checkpoints
            assert [one["model_id"] for one in desk.status("bob")["models"]] == [mine.model_id]

    asyncio.run(main())


def test_a_session_that_ends_takes_its_models_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            model = await client.model()
            waiting = await model.step(number=9)
            await desk.heartbeat(OWNER, client.session_id)
            await desk.finish(OWNER, client.session_id)
            await desk.finish(OWNER, client.session_id, "errored")
            message, category = await model.error(waiting)
            assert category == "user"
            assert "has ended (success)" in message
            for call, status in (
                (desk.heartbeat(OWNER, client.session_id), 410),
                (model.step(number=1), 404),
                (client.submit("create_model", _creation(client, 4)), 404),
                (desk.get_info(OWNER, model.model_id), 404),
            ):
                with pytest.raises(Refused) as refused:
                    await call
                assert refused.value.status == status

    asyncio.run(main())


def test_a_session_whose_client_is_silent_ends_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Also where the first look for such sessions breaks."""

    async def main() -> None:
        async with opened(tmp_path, session_seconds=2) as desk:
            client = await Client.begin(desk)
            prune, broken = desk.ledger.prune, iter([True])
            desk.ledger.prune = lambda: 1 / 0 if next(broken, False) else prune()  # type: ignore[method-assign]
            model = await client.model()
            await model.backward()
            await model.step()
            while desk.status()["models"]:
                await asyncio.sleep(0.05)
            listed = await desk.rest(OWNER, lambda rest: rest.list_checkpoints(model.model_id))
            assert [one.checkpoint_id for one in listed.checkpoints] == ["weights/interrupted-2"]
            with pytest.raises(Refused, match="has ended"):
                await desk.heartbeat(OWNER, client.session_id)

    asyncio.run(main())


def test_what_is_answered_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            again = [await desk.create_session(OWNER, idempotency_key="k", user_metadata={"a": 1}) for _ in range(2)]
            assert again[0] == again[1]
            client = Client(desk, again[0])
            model = await client.model()
            info = await desk.get_info(OWNER, model.model_id)
            assert info["model_data"]["model_name"] == "tiny"
            assert info["lora_rank"] == 4
            assert {one["model_name"] for one in desk.capabilities()["supported_models"]} == {"tiny", "other"}
            runs = await desk.rest(OWNER, lambda rest: rest.list_training_runs())
            assert [run.training_run_id for run in runs.training_runs] == [model.model_id]
            with pytest.raises(Refused) as refused:
                await desk.rest(OWNER, lambda rest: rest.delete_checkpoint(model.model_id, "weights/none"))
            assert refused.value.status == 404
            assert str(tmp_path) not in refused.value.message

    asyncio.run(main())


def test_a_checkpoint_goes_on_as_a_new_model_with_the_same_numbers(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            model = await client.model()
            await model.train(2)
            path = (await client.ask("save_weights", {"model_id": model.model_id, "seq_id": 5, "path": "a"}))["path"]
            taken = await Model(client, model.model_id, 5).send("save_weights", path="a")
            assert (await client.answer(taken)).category == "user"
            fields = {"session_id": client.session_id, "model_seq_id": 1, "path": path, "optimizer": True}
            made = Model(client, (await client.ask("load_weights", fields))["model_id"])
            model.number = 6
            assert made.model_id == f"{client.session_id}:train:1"
            assert await made.train(2) == await model.train(2)

    asyncio.run(main())


def _creation(client: Client, number: int, base_model: str = "tiny") -> dict[str, Any]:
    return {
        "session_id": client.session_id,
        "model_seq_id": number,
        "base_model": base_model,
        "lora_config": {"rank": 4},
    }
