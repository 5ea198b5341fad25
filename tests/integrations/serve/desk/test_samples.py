"""Samples through a desk: those of the in-process door, together, each failing alone, of weights that stay what they were."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lossbook.integrations import tinker
from lossbook.integrations.serve.desk import sequence_ids
from lossbook.integrations.serve.desk.samplers import IN_MEMORY_PER_MODEL
from lossbook.integrations.serve.refusals import Refused
from lossbook.integrations.serve.wire.messages import messages
from lossbook.integrations.tinker import settings as door

from .server import OWNER, Client, Model, opened

PROMPT = [3, 4, 5]


def sample(sampler: str, number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "sampling_session_id": sampler,
        "seq_id": number,
        "num_samples": 2,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": PROMPT}]},
        "sampling_params": {"max_tokens": 6, "seed": 1, "stop": []},
        "prompt_logprobs": True,
        **changes,
    }


async def sampled(client: Client, fields: dict[str, Any]) -> Any:
    """The message of a sample that works."""
    answer = await client.answer(await client.submit("sample", fields))
    assert answer.error is None, answer.error
    return messages().SampleResponse.FromString(answer.body)


async def snapshot(model: Model, kind: str = "snapshot") -> str:
    """A sampler of a model's weights."""
    number = model.number = model.number + 1
    fields = {"model_id": model.model_id, "seq_id": number, "sampling_session_seq_id": number, "kind": kind}
    return (await model.client.ask("save_weights_for_sampler", fields))["sampling_session_id"]


def test_samples_are_those_of_the_in_process_door(tmp_path: Path) -> None:
    before = door.current().root
    door.configure(root=tmp_path / "door")
    with tinker.ServiceClient() as service:
        client = service.create_sampling_client(base_model="tiny").result()
        params = tinker.SamplingParams(max_tokens=6, seed=1, stop=[])
        theirs: Any = client.sample(
            tinker.ModelInput.from_ints(PROMPT), 2, params, include_prompt_logprobs=True
        ).result()
    door.configure(root=before)

    async def main() -> None:
        async with opened(tmp_path / "serve") as desk:
            client = await Client.begin(desk)
            make = desk.create_sampling_session
            sampler = await make(OWNER, session_id=client.session_id, number=0, base_model="tiny")
            mine = await sampled(client, sample(sampler))
            for own, other in zip(mine.sequences, theirs.sequences, strict=True):
                assert own.tokens == other.tokens_np.astype("<i4").tobytes()
                assert own.logprobs == other.logprobs_np.astype("<f4").tobytes()
            assert mine.prompt_logprobs == theirs.prompt_logprobs_np.astype("<f4").tobytes()
            assert len(set(sequence_ids("x", 3))) == 3

    asyncio.run(main())


def test_samples_that_wait_together_are_each_as_alone_and_fail_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            sampler = await desk.create_sampling_session(
                OWNER, session_id=client.session_id, number=0, base_model="tiny"
            )
            seeds = range(4)
            alone = [await sampled(client, sample(sampler, i, sampling_params=_seeded(i))) for i in seeds]
            ids = [await client.submit("sample", sample(sampler, 10 + i, sampling_params=_seeded(i))) for i in seeds]
            bad = await client.submit(
                "sample", sample(sampler, 20, prompt={"chunks": [{"type": "encoded_text", "tokens": [10**6]}]})
            )
            ids.append(await client.submit("sample", sample(sampler, 10, sampling_params=_seeded(0))))
            together = [messages().SampleResponse.FromString((await client.answer(one)).body) for one in ids]
            assert [one.tokens for response in together[:4] for one in response.sequences] == [
                one.tokens for response in alone for one in response.sequences
            ]
            assert ids[0] == ids[4]
            assert (await client.answer(bad)).category == "user"

    asyncio.run(main())


def test_a_sampler_of_a_model_keeps_its_weights_and_one_that_follows_has_the_newest(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path, models_in_memory=1) as desk:
            client = await Client.begin(desk)
            model = await client.model()
            still, follows = await snapshot(model), await snapshot(model, "inflight")
            first = await sampled(client, sample(still))
            assert (await sampled(client, sample(follows))).prompt_logprobs == first.prompt_logprobs
            await model.train(1)
            assert (await sampled(client, sample(still, 1))).prompt_logprobs == first.prompt_logprobs
            assert (await sampled(client, sample(follows, 1))).prompt_logprobs == first.prompt_logprobs
            await client.model(1)  # puts the first one on the disk, with its samplers
            assert (await sampled(client, sample(still, 2))).prompt_logprobs == first.prompt_logprobs
            newest = await snapshot(model, "inflight")
            now = await sampled(client, sample(newest))
            assert now.prompt_logprobs != first.prompt_logprobs
            assert (await sampled(client, sample(follows, 2))).prompt_logprobs == now.prompt_logprobs
            assert (await sampled(client, sample(still, 3))).prompt_logprobs == first.prompt_logprobs

    asyncio.run(main())


def test_old_samplers_of_a_model_go_to_the_disk_and_sample_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            model = await client.model()
            samplers, before = [], []
            for _ in range(IN_MEMORY_PER_MODEL + 1):
                samplers.append(await snapshot(model))
                before.append((await sampled(client, sample(samplers[-1]))).prompt_logprobs)
                await model.train(1)
            paths = [(await desk.sampler(OWNER, one)).get("model_path") for one in samplers]
            assert [path is not None for path in paths] == [True] + [False] * IN_MEMORY_PER_MODEL
            after = [(await sampled(client, sample(one, 1))).prompt_logprobs for one in samplers]
            assert after == before
            assert len(set(before)) == len(before)

    asyncio.run(main())


def test_a_sampler_of_saved_weights_is_the_model_that_saved_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path) as desk:
            client = await Client.begin(desk)
            model = await client.model()
            await model.train(1)
            fields = {"model_id": model.model_id, "seq_id": 3, "path": "kept"}
            path = (await client.ask("save_weights_for_sampler", fields))["path"]
            make = desk.create_sampling_session
            asked: dict[str, Any] = {"session_id": client.session_id, "base_model": "tiny", "model_path": path}
            ids = [await make(OWNER, number=3, **asked) for _ in range(2)]
            assert ids[0] == ids[1]
            with pytest.raises(Refused, match="another sampler"):
                await make(OWNER, session_id=client.session_id, number=3, base_model="other")
            with pytest.raises(Refused) as refused:
                await make(OWNER, session_id=client.session_id, number=4, base_model="unknown")
            assert refused.value.status == 400
            described = await desk.sampler(OWNER, ids[0])
            assert described == {"sampler_id": ids[0], "base_model": "tiny", "model_path": path}
            assert [await desk.join_sampling_session(OWNER, ids[0]) for _ in range(2)] == [1, 2]
            model.number = 3
            mine = await sampled(client, sample(await snapshot(model)))
            assert (await sampled(client, sample(ids[0]))).prompt_logprobs == mine.prompt_logprobs

    asyncio.run(main())


def _seeded(seed: int) -> dict[str, Any]:
    return {"max_tokens": 6, "seed": seed, "stop": []}
