"""Fused norms, rotations and MLPs: the numbers and gradients of each architecture's own layers, or its own layers, with a reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lossbook as lb
from lossbook.datums.errors import ModelError
from lossbook.trainer.clients.training import TrainingClient
from lossbook.trainer.model.fused.fuse import fuse_layers
from lossbook.trainer.model.fused.kernels import Kernels, standing_in
from lossbook.trainer.model.fused.reference import reference_kernels
from lossbook.trainer.model.lora.lora import add_lora
from lossbook.trainer.model.model import LoadedModel

from ..kinds import GROUPED, KINDS, SIZES, model_of

MORE: dict[str, Any] = {
    "norms of queries and keys": lambda: transformers.Qwen3Config(**GROUPED),
    "norms behind attention": lambda: transformers.Olmo2Config(**SIZES),
    "norms on both sides": lambda: transformers.Gemma3TextConfig(**GROUPED, sliding_window=5),
    "a rotation of half of each head": lambda: transformers.GlmConfig(**GROUPED, partial_rotary_factor=0.5),
}
#: What is fused in each kind of model, of two layers: norms, MLPs, rotations.
FUSED: dict[str, tuple[int, int, int]] = {
    "grouped queries": (5, 2, 2),
    "learned positions": (0, 0, 0),
    "no positions": (5, 2, 0),
    "biases by distance": (0, 0, 0),
    "a rotation that switches at 32 tokens": (5, 2, 2),
    "a rotation that grows beyond the context": (5, 2, 2),
    "a window": (5, 2, 2),
    "a window longer than a probe": (5, 2, 2),
    "chunks longer than a probe": (5, 2, 0),
    "tokens chosen by score": (9, 2, 0),
    "soft-capped scores": (9, 2, 2),
    "attention sinks": (5, 0, 0),
    "a state along the row": (3, 0, 0),
    "a state in some layers": (7, 2, 1),
    "norms of queries and keys": (9, 2, 2),
    "norms behind attention": (9, 2, 2),
    "norms on both sides": (13, 2, 2),
    "a rotation of half of each head": (5, 2, 0),
}


def fused(model: LoadedModel, kernels: Kernels | None = None) -> LoadedModel:
    with standing_in(kernels or reference_kernels()):
        return fuse_layers(model)


def llama() -> LoadedModel:
    return model_of(transformers.LlamaConfig(**GROUPED))


def numbers(model: LoadedModel) -> dict[str, Tensor]:
    """Hidden states of two rows of tokens, and the gradient of every weight."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(90, (2, 24), generator=random)
    model.module.requires_grad_(True)
    hidden = model.backbone(tokens, use_cache=False).last_hidden_state
    (hidden * torch.randn(hidden.shape, generator=random)).sum().backward()
    gradients = {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}
    return {"hidden states": hidden.detach(), **gradients}


def assert_same(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert (ours[name] - value).norm() <= tolerance * value.norm().clamp(min=1e-3), name


@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_model_gives_the_numbers_and_gradients_of_its_own_layers(kind: str) -> None:
    make = (KINDS | MORE)[kind]
    model = fused(model_of(make()))
    counts = dict(zip(("norms", "MLPs", "rotations"), FUSED[kind], strict=True))
    assert model.fused == {name: count for name, count in counts.items() if count}
    assert_same(numbers(model), numbers(model_of(make())), 1e-4)


def test_a_model_in_bfloat16_is_fused_in_the_form_that_rounds_as_its_own() -> None:
    for make in (KINDS["grouped queries"], KINDS["soft-capped scores"]):
        own, model = model_of(make()), model_of(make())
        for each in (own, model):
            for parameter in each.module.parameters():
                parameter.data = parameter.data.bfloat16()
        fused(model)
        norm, ours = (
            next(p for n, p in each.module.named_modules() if n.endswith("layernorm")) for each in (own, model)
        )
        x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
        assert "norms" in model.fused
        torch.testing.assert_close(ours(x), norm(x), rtol=0, atol=0)


def test_one_model_is_fused_and_another_of_its_classes_is_not() -> None:
    own, model = llama(), llama()
    names = list(model.module.state_dict())
    fused(model)
    assert list(model.module.state_dict()) == names
    assert not any("forward" in part.__dict__ for part in own.module.modules())
    assert any("forward" in part.__dict__ for part in model.module.modules())
    assert own.fused == {}


def test_adapters_on_every_projection_get_the_same_gradients() -> None:
    def adapted(model: LoadedModel) -> dict[str, Tensor]:
        add_lora(model, rank=4, seed=3)
        with torch.no_grad():
            for name, parameter in model.trainable().items():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        hidden = model.backbone(torch.arange(2 * 24).view(2, 24), use_cache=False).last_hidden_state
        (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        return {name: p.grad for name, p in model.trainable().items() if p.grad is not None}

    expected = adapted(llama())
    assert {name.split(".")[-4] for name in expected} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert_same(adapted(fused(llama())), expected, 2e-5)


def wrong(**changed: Any) -> Kernels:
    return reference_kernels()._replace(**changed)


def test_what_gives_other_numbers_keeps_its_own_layers_with_the_reason() -> None:
    gated = {"silu": lambda gate, up: nn.functional.silu(gate) * up * 1.001}
    model = fused(llama(), wrong(gated=gated))
    assert model.fused == {"norms": 5, "rotations": 2}
    assert model.verdicts["fused MLPs"].reason == "2 x model.layers.*.mlp (off by 0.001 of its numbers)"
    assert_same(numbers(model), numbers(llama()), 2e-5)


def test_a_wrong_gradient_shows_too() -> None:
    gated = {"silu": lambda gate, up: nn.functional.silu(gate) * up.detach()}
    assert "MLPs" not in fused(llama(), wrong(gated=gated)).fused


def test_a_kernel_that_fails_leaves_the_layers_as_they_are() -> None:
    def fails(*_: Any) -> Tensor:
        raise RuntimeError("out of registers")

    model = fused(llama(), wrong(rms_norm=fails))
    assert model.fused == {"MLPs": 2, "rotations": 2}
    assert "RuntimeError: out of registers" in model.verdicts["fused norms"].reason


class _WritesOver(torch.autograd.Function):
    """The identity, whose backward writes over the gradient that it is given, which a residual connection still needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:  # type: ignore[override]
        ours = upstream.clone()
        upstream.zero_()
        return ours


def test_what_only_the_whole_model_shows_leaves_all_layers_as_they_are() -> None:
    reference = reference_kernels().rms_norm
    model = fused(
        model_of(transformers.Olmo2Config(**SIZES)), wrong(rms_norm=lambda *g: _WritesOver.apply(reference(*g)))
    )
    assert model.fused == {}
    assert "the model as a whole is off by" in model.verdicts["fused"].reason
    assert not any("forward" in part.__dict__ for part in model.module.modules())


def test_an_mlp_that_drops_in_training_keeps_its_own_forward() -> None:
    model = llama()

    class Dropping(type(model.module.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    model.module.model.layers[1].mlp.__class__ = Dropping  # type: ignore[union-attr]
    assert fused(model).fused == {"norms": 5, "MLPs": 1, "rotations": 2}


def client(**options: Any) -> TrainingClient:
    with standing_in(reference_kernels()):
        return lb.ServiceClient(device="cpu", **options).create_training_client("tiny")


def test_a_client_says_what_is_fused() -> None:
    training = client()
    layers = len(training.local.model.backbone.layers)  # type: ignore[arg-type]
    assert training.get_info().fused == {"norms": 2 * layers + 1, "MLPs": layers, "rotations": layers}
    assert f"; fuses {2 * layers + 1} norms, {layers} MLPs, {layers} rotations" in training.how_it_runs().result()


@pytest.mark.parametrize("options", [{"fused_layers": "none"}, {"compile_layers": True}], ids=str)
def test_a_client_without_fused_layers_runs_its_own(options: dict[str, Any]) -> None:
    training = client(**options)
    assert training.get_info().fused == {}
    assert "fuses" not in training.how_it_runs().result()


@pytest.mark.parametrize("loss", ["cross_entropy", "dpo", "grpo"])
def test_a_fused_step_gives_the_gradients_of_one_that_is_not(
    loss: str,
    make_datums: Callable[..., list[lb.Datum]],
    gradients_of: Callable[[TrainingClient], dict[str, Tensor]],
) -> None:
    gradients = []
    for choice in ("none", "auto"):
        training = client(fused_layers=choice)
        training.forward_backward(make_datums(), loss).result()
        gradients.append(gradients_of(training))
    assert_same(gradients[1], gradients[0], 2e-5)


def test_samplers_references_and_loaded_states_are_fused_too(tmp_path: Path) -> None:
    with standing_in(reference_kernels()):
        service = lb.ServiceClient(device="cpu", checkpoint_dir=tmp_path)
        path = service.create_lora_training_client("tiny", rank=2, seed=0).save_state("step").result().path
        assert service.create_training_client_from_state(path).get_info().fused
        for choice in ({"model_path": path}, {"base_model": "tiny"}):
            assert service.create_sampling_client(**choice)._frozen.model.fused
            assert service.create_reference_client(**choice)._frozen.model.fused


def test_on_a_cpu_nothing_is_fused_and_asking_for_it_says_why() -> None:
    training = lb.ServiceClient(device="cpu").create_training_client("tiny")
    assert training.get_info().fused == {}
    assert not any(name.startswith("fused") for name in training.get_info().reasons)
    with pytest.raises(
        ModelError, match="tiny cannot run with fused_layers='liger': liger-kernel needs a GPU, not cpu"
    ):
        lb.ServiceClient(device="cpu", fused_layers="liger").create_training_client("tiny")
    with pytest.raises(ModelError, match="it has no part that liger-kernel knows"), standing_in(reference_kernels()):
        fuse_layers(model_of(KINDS["learned positions"]()), "liger")


#: Compares Liger's kernels with the reference in Triton's interpreter, which hands numbers to a kernel as Python's; a GPU's
#: have a method that casts them. It lacks CUDA's rsqrt and tanh, for which Triton's own stand in.
INTERPRETED = """
import torch, triton.runtime.interpreter as interpreter
import triton.language as tl

class Scalar(float):
    def to(self, dtype):
        return self

convert = interpreter._implicit_cvt
interpreter._implicit_cvt = lambda given: Scalar(given) if isinstance(given, float) else convert(given)

import liger_kernel.ops.geglu, liger_kernel.ops.rms_norm
liger_kernel.ops.rms_norm.rsqrt = lambda x: tl.rsqrt(x)
liger_kernel.ops.geglu.tanh = lambda x: 2 / (1 + tl.exp(-2 * x)) - 1

from lossbook.trainer.model.fused.check import apart, numbers
from lossbook.trainer.model.fused.kernels import kernels_for
from lossbook.trainer.model.fused.reference import reference_kernels

ours, theirs = reference_kernels(), kernels_for(torch.device("cpu"))
random = torch.Generator().manual_seed(0)
x, y, weight = (torch.randn(shape, generator=random) for shape in ((2, 5, 48), (2, 5, 48), (48,)))
q, k = torch.randn(2, 5, 4, 8, generator=random).transpose(1, 2), torch.randn(2, 5, 2, 8, generator=random).transpose(1, 2)
angles = torch.randn(2, 5, 4, generator=random).repeat(1, 1, 2)
calls = {
    "rms_norm": (lambda kernels, x, w: kernels.rms_norm(x, w, 1e-5, 1.0, "gemma"), (x, weight)),
    "rotate": (lambda kernels, q, k: kernels.rotate(q, k, angles.cos(), angles.sin()), (q, k)),
    "silu": (lambda kernels, x, y: kernels.gated["silu"](x, y), (x, y)),
    "gelu_tanh": (lambda kernels, x, y: kernels.gated["gelu_tanh"](x, y), (x, y)),
    "halves": (lambda kernels, x: kernels.halves["silu"](x), (x,)),
}
for name, (call, leaves) in calls.items():
    one, other = (numbers(lambda *given: call(kernels, *given), leaves) for kernels in (ours, theirs))
    off = apart(one, other)
    assert off < 1e-5, (name, off)
    print(name)
"""


@pytest.mark.slow
def test_ligers_kernels_are_the_reference_in_tritons_interpreter() -> None:
    pytest.importorskip("liger_kernel", reason="pip install -e '.[bench]'")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["rms_norm", "rotate", "silu", "gelu_tanh", "halves"]
