"""Decoding on a GPU's path: buffers of fixed size, several steps between two reads, recorded steps. The samples are the CPU's."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lossbook.datums.types import SamplingParams
from lossbook.trainer.device import taking_gpu_path
from lossbook.trainer.model.model import LoadedModel
from lossbook.trainer.sampling import blocks
from lossbook.trainer.sampling.continuations import Continuations
from lossbook.trainer.sampling.generate import Generated, generate_batch
from lossbook.trainer.sampling.params import SampledLogprobs
from lossbook.trainer.sampling.plan import plan_of
from lossbook.trainer.sampling.static import graph, rows
from lossbook.trainer.sampling.static.rows import StaticRows
from lossbook.trainer.sampling.summary import how_it_runs

from ..kinds import GROUPED, KINDS, SIZES, model_of
from . import recorder
from .test_plan import KINDS_BY_COST, LONGROPE, MORE

PROMPTS = [[5, 9, 2, 40, 41, 7, 8, 3], [11, 12, 13], [1, 90, 30, 31, 32, 60, 61, 62]]
#: Kinds whose keys and values lie in buffers of fixed size.
FIXED = [
    *("grouped queries", "learned positions", "no positions", "a rotation that grows beyond the context", "a window"),
    *("a window longer than a probe", "chunks longer than a probe", "soft-capped scores", "attention sinks"),
]


@pytest.fixture(scope="module")
def models() -> dict[str, LoadedModel]:
    return {kind: model_of(config(), seed=1) for kind, config in MORE.items()}


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are recorded and replayed, as on CUDA, from the second one on."""
    monkeypatch.setitem(graph.RECORDERS, "cpu", recorder.record)
    monkeypatch.setattr(graph, "WORTHWHILE_STEPS", 1)


def on_gpu_path(model: LoadedModel, prompts: list[list[int]], steps: int, **options: Any) -> list[list[Generated]]:
    with taking_gpu_path(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(blocks.STEPS, "cuda", steps)
        return generate_batch(model, prompts, **options)


def check_equal(ours: list[list[Generated]], theirs: list[list[Generated]], within: float = 1e-4) -> None:
    pairs = [zip(mine, other, strict=True) for mine, other in zip(ours, theirs, strict=True)]
    for mine, other in chain.from_iterable(pairs):
        assert (mine.tokens, mine.stop_reason) == (other.tokens, other.stop_reason)
        assert mine.logprobs == pytest.approx(other.logprobs, abs=within)


@pytest.mark.parametrize("kind", KINDS_BY_COST)
@pytest.mark.usefixtures("recording")
@torch.no_grad()
def test_samples_of_a_gpus_path_are_those_of_a_cpus(models: dict[str, LoadedModel], kind: str) -> None:
    model = models[kind]
    tokens = 30 if kind == LONGROPE else 10
    options: dict[str, Any] = {"num_samples": 2, "params": SamplingParams(max_tokens=tokens, seed=3, stop=[7, 20])}
    expected = generate_batch(model, PROMPTS, **options)
    for steps in (16, 1):
        check_equal(on_gpu_path(model, PROMPTS, steps, **options), expected)
    with taking_gpu_path():
        assert plan_of(model).fixed == (kind in FIXED), model.verdicts["fixed buffers"].reason


@pytest.mark.parametrize("topk", [0, 3])
@pytest.mark.usefixtures("recording")
@torch.no_grad()
def test_scaled_logprobs_and_likeliest_tokens_of_a_gpus_path_are_those_of_a_cpus(
    models: dict[str, LoadedModel], topk: int
) -> None:
    model = models["grouped queries"]
    params = SamplingParams(max_tokens=8, seed=3, stop=[7, 20], temperature=0.6, top_p=0.9)
    options: dict[str, Any] = {"num_samples": 2, "params": params, "said": SampledLogprobs(scaled=True, topk=topk)}
    expected = generate_batch(model, PROMPTS, **options)
    assert expected != generate_batch(model, PROMPTS, num_samples=2, params=params)
    for steps in (16, 3):
        ours = on_gpu_path(model, PROMPTS, steps, **options)
        check_equal(ours, expected)
        for mine, other in zip(chain.from_iterable(ours), chain.from_iterable(expected), strict=True):
            assert (mine.top is None) == (other.top is None) == (topk == 0)
            if mine.top is not None and other.top is not None:
                assert mine.top.tokens.shape == (len(mine.tokens), topk)
                assert (mine.top.tokens == other.top.tokens).all()
                assert mine.top.logprobs == pytest.approx(other.top.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.usefixtures("recording")
@torch.no_grad()
def test_recorded_steps_are_replayed_or_it_says_why_not(models: dict[str, LoadedModel], kind: str) -> None:
    model = models[kind]
    on_gpu_path(model, PROMPTS, 16, num_samples=1, params=SamplingParams(max_tokens=6, seed=0, stop=[]))
    with taking_gpu_path():
        said = how_it_runs(model, "padded")
    if kind in ("a rotation that grows beyond the context",):
        assert "samples with a cache of fixed size (no graph: a step cannot be recorded, RuntimeError" in said
    else:
        assert said.endswith("samples with a cache of fixed size, replayed as a graph")


@given(data=st.data())
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("recording")
@torch.no_grad()
def test_samples_depend_neither_on_company_nor_on_blocks_nor_on_recording(
    models: dict[str, LoadedModel], data: st.DataObject
) -> None:
    check_samples(models[data.draw(st.sampled_from(["grouped queries", "a window", "soft-capped scores"]))], data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MORE)
@given(data=st.data())
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("recording")
@torch.no_grad()
def test_none_of_many_samples_depends_on_company_blocks_or_recording(
    models: dict[str, LoadedModel], kind: str, data: st.DataObject
) -> None:
    check_samples(models[kind], data)


def check_samples(model: LoadedModel, data: st.DataObject) -> None:
    """Samples of the CPU's path, alone and together, are those of the other with any block, any room, with and without sharing."""
    lengths = data.draw(st.lists(st.sampled_from([1, 3, 30, 33, 39]), min_size=1, max_size=3))
    prompts = [[(7 * i + 3 + n) % 96 for i in range(length)] for n, length in enumerate(lengths)]
    ids = st.lists(st.integers(0, 95), max_size=12)
    params = SamplingParams(
        max_tokens=data.draw(st.integers(1, 20)),
        temperature=data.draw(st.sampled_from([0.0, 0.7, 1.0])),
        top_k=data.draw(st.sampled_from([-1, 5])),
        top_p=data.draw(st.sampled_from([1.0, 0.8])),
        seed=data.draw(st.integers(0, 2**31)),
        stop=data.draw(st.one_of(ids, st.just(["a", "}{"]))),
    )
    samples, steps = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([1, 3, 16]))
    expected = generate_batch(model, prompts, num_samples=samples, params=params)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "FIRST_ROOM", data.draw(st.sampled_from([2, 16, 64])))
        patch.setattr(rows, "SHARED_FROM", data.draw(st.sampled_from([0, 20, 1000])))
        check_equal(on_gpu_path(model, prompts, steps, num_samples=samples, params=params), expected)
        (alone,) = on_gpu_path(model, prompts[-1:], 16, num_samples=samples, params=params)
        check_equal([alone], expected[-1:])


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("slots", [1, 2, 4])
@torch.no_grad()
def test_hidden_states_are_those_of_the_models_own_cache_while_rows_leave_and_room_grows(
    models: dict[str, LoadedModel], kind: str, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "FIRST_ROOM", 2)
    ours = StaticRows(models[kind], PROMPTS, 4, 12, slots=slots)
    theirs = Continuations(models[kind], PROMPTS, 4, 12, share_prompts=False)
    pairs, count = [(ours.read(), theirs.read())], 12
    for step in range(9):
        if step in (2, 4):
            left = ours.keep([i for i in range(count) if i // 4 != step % 3])
            assert theirs.keep(left) == left
            count = len(left)
        tokens = (torch.arange(count) * 7 + step) % 96
        pairs.append((ours.extend(tokens), theirs.extend(tokens)))
    assert count == 4
    assert ours.state.shape.room == 16
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_prompt_lies_in_the_buffers_once_for_the_samples_that_share_it() -> None:
    model = model_of(transformers.LlamaConfig(**GROUPED | {"max_position_embeddings": 1024}))
    long, short = [[i % 90 for i in range(300)]], [[5, 6, 7]]
    shapes = [StaticRows(model, prompts, count, 20).state.shape for prompts in (long, short) for count in (16, 3)]
    assert [(s.copies, s.slots, s.width) for s in shapes] == [(2, 8, 320), (1, 3, 320), (16, 1, 32), (3, 1, 32)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was recorded, in order."""
    made: list[str] = []

    def record(step: Any) -> Any:
        made.append("recorded")
        return recorder.record(step)

    monkeypatch.setitem(graph.RECORDERS, "cpu", record)
    return made


@torch.no_grad()
def test_a_step_is_recorded_once_for_a_shape_also_over_several_batches(
    counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lossbook.trainer.sampling import generate as generate_module

    monkeypatch.setattr(generate_module, "MAX_ROWS", 4)
    model = model_of(KINDS["grouped queries"](), seed=1)
    prompts = [[5, 6, 7 + i] for i in range(8)]
    options: dict[str, Any] = {"num_samples": 2, "params": SamplingParams(max_tokens=30, seed=3, stop=[])}
    samples = on_gpu_path(model, prompts, 16, **options)
    assert counted == ["recorded"], "four batches of one shape"
    check_equal(samples, generate_batch(model, prompts, **options))


@torch.no_grad()
def test_a_model_whose_steps_cannot_be_recorded_is_tried_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def fail(step: Any) -> Any:
        tries.append(1)
        recorder.record(step)
        raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

    monkeypatch.setitem(graph.RECORDERS, "cpu", fail)
    model = model_of(KINDS["a window"](), seed=1)
    options: dict[str, Any] = {"num_samples": 2, "params": SamplingParams(max_tokens=30, seed=3, stop=[])}
    check_equal(on_gpu_path(model, PROMPTS, 16, **options), generate_batch(model, PROMPTS, **options))
    assert tries == [1]
    reason = "a step cannot be recorded, RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert model.verdicts["graph"].reason == reason


@torch.no_grad()
def test_rows_that_have_ended_do_not_leave_the_context() -> None:
    """One row of ten ends with the context, and is not dropped before the others end."""
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=None, eos_token_id=None
    )
    model = model_of(config)
    prompts = [[5] * 20, *([i] * 8 for i in range(10))]
    options: dict[str, Any] = {"params": SamplingParams(max_tokens=None, seed=3, stop=[])}
    samples = generate_batch(model, prompts, **options)
    assert [len(group[0].tokens) for group in samples] == [4, *[16] * 10]
    check_equal(on_gpu_path(model, prompts, 16, **options), samples)


def test_one_block_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(transformers.LlamaConfig(**SIZES))
    reads: list[tuple[int, ...]] = []
    honest = blocks.Blocks._read

    def read(self: Any, tokens: Tensor, logprobs: Tensor) -> Any:
        reads.append(tuple(tokens.shape))
        return honest(self, tokens, logprobs)

    monkeypatch.setattr(blocks.Blocks, "_read", read)
    on_gpu_path(model, [[5, 6]], 16, num_samples=3, params=SamplingParams(max_tokens=40, seed=0, stop=[]))
    assert reads == [(16, 3), (16, 3), (8, 3)]


@pytest.mark.parametrize("kind", ["grouped queries", "a window", "soft-capped scores"])
def test_in_bfloat16_too_the_hidden_states_are_those_without_a_cache(kind: str) -> None:
    model = model_of(KINDS[kind](), seed=1)
    model.module.to(torch.bfloat16)
    with taking_gpu_path():
        assert plan_of(model).fixed, model.verdicts["fixed buffers"].reason


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", FIXED)
@torch.no_grad()
def test_on_cuda_a_graph_gives_the_samples_of_single_steps(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(KINDS[kind](), seed=1)
    model.module.to("cuda", dtype)
    model.device = torch.device("cuda")
    options: dict[str, Any] = {"num_samples": 3, "params": SamplingParams(max_tokens=70, seed=3, stop=[7])}
    with_graph = generate_batch(model, PROMPTS, **options)
    grows = kind == "a rotation that grows beyond the context"
    assert bool(model.verdicts["graph"]) != grows, model.verdicts["graph"].reason
    monkeypatch.setattr(graph, "RECORDERS", {})
    check_equal(with_graph, generate_batch(model, PROMPTS, **options))
