"""`lossbook doctor plan`: what it prints, what it refuses, and that more never takes less."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook.cookbook.cli import main
from lossbook.cookbook.doctor.plan.gpus import GPUS
from lossbook.cookbook.doctor.plan.memory import Setup, largest_micro_batch, memory_of
from lossbook.cookbook.doctor.plan.outline import Sizes, outline, trained
from lossbook.cookbook.doctor.plan.plan import plan_for
from lossbook.cookbook.doctor.plan.shape import Shape, shape_of
from lossbook.cookbook.doctor.plan.traffic import Speed

#: A decoder of 350 million parameters, its head tied; and a small one of given sizes.
MODELS = {"350m": Sizes(1024, 8, 16, 4, 2816, 50000, tied=True), "small": Sizes(64, 3, 4, 2, 192, 260)}


@cache
def shape(model: str, rank: int | None, dtype: torch.dtype) -> Shape:
    return shape_of(trained(outline(MODELS.get(model, model), dtype), rank))


def planned(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    code = main(["doctor", "plan", *flags, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert code == (0 if printed["fits"] else 1)
    return printed


def shapes() -> st.SearchStrategy[Shape]:
    cases = [("350m", None, torch.bfloat16), ("small", None, torch.float32), ("small", 4, torch.bfloat16)]
    return st.sampled_from(cases).map(lambda case: shape(*case))


setups = st.builds(
    Setup, st.integers(2, 600), st.integers(1, 2**17), checkpoint_layers=st.booleans(), on_gpu=st.booleans()
)


@given(shapes(), setups, st.integers(1, 600))
def test_more_gpus_never_take_more_of_each(shape: Shape, setup: Setup, more: int) -> None:
    many, few = memory_of(shape, replace(setup, ranks=setup.ranks + more)), memory_of(shape, setup)
    alone = memory_of(shape, replace(setup, ranks=1))
    assert many.training <= few.training
    assert many.sampling <= few.sampling
    assert few.at_rest <= alone.at_rest, "one GPU holds all; two hold half each, and gather"


@given(shapes(), setups, st.sampled_from([1, 0]))
def test_checkpointing_never_keeps_more_activations(shape: Shape, setup: Setup, alone: int) -> None:
    ranks = 1 if alone else setup.ranks
    kept = memory_of(shape, replace(setup, ranks=ranks, checkpoint_layers=False))
    again = memory_of(shape, replace(setup, ranks=ranks, checkpoint_layers=True))
    for time in kept.times:
        for part in ("activations", "copies"):
            assert again.times[time][part] <= kept.times[time][part], (time, part)
    assert again.training <= kept.training


@given(shapes(), setups, st.integers(1, 2**16))
def test_larger_micro_batches_never_take_less(shape: Shape, setup: Setup, more: int) -> None:
    assert memory_of(shape, replace(setup, tokens=setup.tokens + more)).training >= memory_of(shape, setup).training


@given(shapes(), setups, st.integers(10**6, 10**11))
def test_the_largest_micro_batch_fits_and_one_token_more_does_not(shape: Shape, setup: Setup, limit: int) -> None:
    tokens = largest_micro_batch(shape, setup, limit)
    if tokens:
        assert memory_of(shape, replace(setup, tokens=tokens)).training <= limit
    assert memory_of(shape, replace(setup, tokens=tokens + 1)).training > limit or tokens == 2**22


@given(shapes(), setups, st.integers(10**6, 10**11))
def test_every_remedy_takes_no_more_than_there_is(shape: Shape, setup: Setup, limit: int) -> None:
    plan = plan_for(shape, setup, Speed(1e14, 1e11, 1e-5), limit, length=1000)
    assert plan.fits == (plan.memory.training <= limit)
    assert not (plan.fits and plan.remedies)
    assert all(size <= limit for _, size in plan.remedies)
    assert 0 < plan.times.efficiency_alone <= plan.times.efficiency <= 1


def test_it_prints_memory_communication_and_efficiency(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "plan", "--model", "tiny", "--gpus", "2", "--all-weights"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "weights, its part",
        "optimizer, its part",
        "all-gathers of weights",
        "expected efficiency",
        "training fits",
    ):
        assert text in printed, text


def test_what_does_not_fit_is_told_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = shlex.split("--hidden 1024 --layers 8 --heads 16 --mlp 2816 --vocabulary 50000 --all-weights --gpus 2")
    printed = planned(capsys, *sizes, "--memory", "8")
    assert not printed["fits"]
    remedy = next(each for each in printed["remedies"] if each["change"].startswith("--checkpoint-layers"))
    again = planned(capsys, *sizes, "--memory", "8", *remedy["change"].split())
    assert again["fits"]
    assert again["memory_bytes"]["training"] == remedy["training_bytes"]


def test_a_folder_with_a_configuration_alone_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 192}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 260}
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    by_folder = planned(capsys, "--model", str(tmp_path), "--gpus", "2")
    by_name = planned(capsys, "--model", "tiny", "--gpus", "2")
    assert by_folder["memory_bytes"] == by_name["memory_bytes"]


@pytest.mark.slow
def test_experts_are_counted_as_often_as_a_token_is_sent_to_them(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64, "vocab_size": 300}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config |= {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    experts = shape_of(trained(outline(str(tmp_path), torch.bfloat16), 4))
    attention = 2 * 64 * 64 + 2 * 32 * 64
    assert experts.multiplied == 2 * (attention + 8 * 64 + 2 * 3 * 64 * 32), "router, and two experts of eight"
    assert experts.layers[0].numbers == attention + 8 * 64 + 8 * 3 * 64 * 32 + 2 * 64 + 2 * 16, "and norms"


def test_a_forward_that_cannot_be_counted_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64, "vocab_size": 300}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["doctor", "plan", "--model", str(tmp_path), "--gpus", "2", "--all-weights"]) == 1
    captured = capsys.readouterr()
    assert "cannot be counted without its weights" in captured.err
    assert captured.err.count("\n") == 1


def test_an_encoder_has_no_logits(capsys: pytest.CaptureFixture[str]) -> None:
    printed = planned(capsys, "--model", "tiny-encoder", "--gpus", "2", "--tokens-per-micro-batch", "512")
    assert printed["memory_bytes"]["times"]["the head runs"]["head"] == 0


def test_more_gpus_than_a_host_has_go_by_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    one_host = planned(capsys, "--model", "tiny", "--gpus", "8")["speed"]["bandwidth"]
    two_hosts = planned(capsys, "--model", "tiny", "--gpus", "16")["speed"]["bandwidth"]
    assert (one_host, two_hosts) == (0.8 * GPUS["h100"].link, 0.8 * GPUS["h100"].network)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--model tiny --gpus 0", "--gpus is at least 1, not 0"),
        ("--model tiny --gpus 2 --rank 0", "--rank is at least 1"),
        ("--model tiny --gpus 2 --rank 100", "LoRA rank must be an integer from 1 to 32"),
        ("--model tiny --gpus 2 --tokens-per-micro-batch 0", "--tokens-per-micro-batch is at least 1"),
        ("--model tiny --gpus 2 --memory 0", "--memory is a number above 0"),
        ("--model tiny --gpus 2 --flops nan", "--flops is a number above 0"),
        ("--model tiny --gpus 2 --bandwidth -1", "--bandwidth is a number above 0"),
        ("--model tiny --gpus 2 --gpu h10", "Did you mean 'h100'?"),
        ("--model tiny --gpus 2 --base-weights 4bit", "does not go with several GPUs"),
        ("--model tiny --gpus 1 --base-weights 4bit --all-weights", "does not go with --all-weights"),
        ("--model tiny --gpus 2 --tensor-parallel 3", "--tensor-parallel is not planned yet"),
        ("--gpus 2", "name a model with --model, or give its sizes"),
        ("--model tiny --hidden 64 --layers 2 --heads 4 --mlp 8 --vocabulary 9 --gpus 2", "one of the two"),
        ("--hidden 64 --gpus 2", "needs --layers, --heads, --mlp, --vocabulary too"),
        ("--hidden 64 --layers 2 --heads 5 --mlp 8 --vocabulary 9 --gpus 2", "--hidden is a multiple of --heads"),
        ("--hidden 64 --layers -2 --heads 4 --mlp 8 --vocabulary 9 --gpus 2", "--layers is at least 1, not -2"),
        ("--model llama-7 --gpus 2", "Did you mean 'llama-7b'?"),
        ("--model nobody/nothing --gpus 2", "downloads nothing"),
    ],
)
def test_nonsense_is_refused_in_one_line(flags: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "plan", *flags.split()]) != 0
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
