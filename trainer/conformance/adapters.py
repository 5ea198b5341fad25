"""Checks of LoRA: where adapters are, what a step changes, and what reloads from an export."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ...datums.errors import ModelError
from ...datums.types import AdamParams
from ...losses.registry import get_loss
from ..model.architecture.classes import loader_of
from ..model.export import export_model
from ..model.linear import adapted, without_wrappers
from ..model.lora.lora import adapted_names, add_lora, export_adapter
from ..model.lora.peft_adapters import detach
from ..model.lora.targets import select, short_names, without_numbers
from ..model.model import LoadedModel
from ..model.snapshot import Snapshot
from ..optim.adamw import AdamW
from .under_test import DoesNotApply, ModelUnderTest, Off, in_float32, own_logprobs, without_gradients

#: Of the adapters that are put on a model without any, and the size of their B, which is zero in a new adapter.
RANK, SIZE = 2, 0.01


def lora(test: ModelUnderTest) -> Off:
    """Weights on which an adapter is missing, does nothing or is too many; and weights that a step changed beside them."""
    with adapters(test) as model:
        reached = adapted_names(model)
        wrong = [f"{name} (no adapter, and not named as left out)" for name in _unnamed(model)]
        wrong += [
            f"{name} (is not trained)"
            for name, p in model.module.named_parameters()
            if ".lora_" in name and not p.requires_grad
        ]
        before = {name: _checksum(p) for name, p in _base_weights(model).items()}
        with without_gradients(model):
            test.engine.forward_backward(test.datums, get_loss("cross_entropy"))
            wrong += [
                f"{name} (gets no gradient)"
                for name, p in model.trainable().items()
                if p.grad is None or not p.grad.any()
            ]
            AdamW(model.trainable()).step(AdamParams(learning_rate=1e-3))
        wrong += [
            f"{name} (changed by a step)" for name, p in _base_weights(model).items() if _checksum(p) != before[name]
        ]
    shown = (
        ", ".join(wrong[:3])
        or f"adapters on {len(reached)} kinds of weights, each trained, and no other weight changed"
    )
    return Off(float(len(wrong)), 0.0, "", shown)


@torch.no_grad()
def exports(test: ModelUnderTest) -> Off:
    """The merged model as transformers loads it, and the adapter as peft does, give the logprobs of the model in memory.

    In float32, so that what is lost by rounding merged weights does not hide anything.
    """
    plain = test.forward()
    with (
        adapters(test) as model,
        in_float32(model),
        TemporaryDirectory(prefix="lossbook-check-") as folder,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of transformers and peft, about what they look up or tie
        ours = test.forward()
        export_adapter(model, Path(folder, "adapter"))
        export_model(model, Path(folder, "model"))
        reloaded = _loaded(model, Path(folder, "model"))
        merged = [own_logprobs(model, datum, reloaded) for datum in test.datums]
        # Its base is in memory already: the merged model with the adapted weights put back.
        reloaded.load_state_dict({name: p for name, p in _base_weights(model).items()}, strict=False)
        from peft import PeftModel

        with_adapter = PeftModel.from_pretrained(reloaded, str(Path(folder, "adapter"))).eval()
        wrapped = [own_logprobs(model, datum, with_adapter) for datum in test.datums]
        off = test.nats([*ours, *ours], [*merged, *wrapped])
    moved = max(float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True))
    return replace(off, note=f"the adapters move logprobs by up to {moved:.1e}")


@contextmanager
def adapters(test: ModelUnderTest) -> Iterator[LoadedModel]:
    """Inside, the model has adapters with an effect; afterwards it is as before. Its own are used where it has some."""
    model = test.model
    own, trained = model.lora, model.trainable()
    model.before_writing()
    before = Snapshot.take(model) if own is not None else None
    try:
        if own is None:
            _add(model)
        _give_effect(model)
        yield model
    finally:
        if before is None:
            detach(model, trained)
        else:
            for name, parameter in model.trainable().items():
                parameter.data.copy_(before.weights[name])


def _add(model: LoadedModel) -> None:
    try:
        sides = [side for target in select(model, ("attention", "mlp"), None).targets.values() for side in target.sides]
        add_lora(model, rank=min(RANK, *sides), seed=0)
    except ModelError as error:
        raise DoesNotApply(f"LoRA is refused: {error}") from None


@torch.no_grad()
def _give_effect(model: LoadedModel) -> None:
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter += SIZE * torch.randn(parameter.shape, generator=random).to(parameter)


def _base_weights(model: LoadedModel) -> dict[str, Tensor]:
    """The weights below the adapters, by the names that they have without."""
    return {without_wrappers(n): p.detach() for n, p in model.module.named_parameters() if ".lora_" not in n}


def _unnamed(model: LoadedModel) -> list[str]:
    """Matrices of the model's layers that have no adapter, and are not among those that were left out with a reason."""
    reached, left_out = adapted(model.module).keys(), model.lora.left_out if model.lora else {}
    if model.lora is None or model.lora.targets is not None or not (model.lora.train_mlp and model.lora.train_attn):
        return []  # only some were asked for
    outside = {id(p) for m in model.module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    outside |= {id(p) for p in model.module.get_output_embeddings().parameters()}  # type: ignore[operator]
    names = [
        name
        for name, p in model.module.named_parameters()
        if p.dim() > 1 and id(p) not in outside and ".lora_" not in name and not name.endswith("bias")
    ]
    plain = [without_wrappers(name) for name in names]
    numbered = {name: without_numbers(name) for name in plain if name not in reached}
    return [n for n, short in numbered.items() if not {short, short.removesuffix(".weight")} & left_out.keys()]


def _checksum(tensor: Tensor) -> int:
    """Of a tensor's bits."""
    return int(
        tensor.contiguous()
        .view(-1)
        .view(torch.uint8 if tensor.element_size() < 4 else torch.int32)
        .sum(dtype=torch.int64)
    )


def _loaded(model: LoadedModel, folder: Path) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    loader = loader_of(model.kind, config)
    dtype = next(model.module.parameters()).dtype
    return loader.from_pretrained(folder, dtype=dtype, use_safetensors=True).to(model.device).eval()


def lora_of(model: LoadedModel) -> str:
    """What LoRA reaches, and what it leaves out and why; names without what comes before the layer number."""
    if model.lora is not None:
        reached, left_out = adapted_names(model), model.lora.left_out
    else:
        try:
            selection = select(model, ("attention", "mlp"), None)
        except ModelError as error:
            return f"LoRA reaches nothing ({error})"
        reached, left_out = short_names(selection.targets), selection.left_out
    line = f"LoRA reaches {', '.join(dict.fromkeys(map(_in_layer, reached)))}"
    reasons = ", ".join(f"{_in_layer(name)} ({reason})" for name, reason in left_out.items())
    return f"{line}; none on {reasons}" if reasons else line


def _in_layer(name: str) -> str:
    return name.rpartition("*.")[2]
