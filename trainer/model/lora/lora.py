"""Low-rank adapters through peft: putting them on a model, and their files."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....datums import disk
from ....datums.errors import CheckpointError, ModelError
from ..defaults import usual_defaults
from ..linear import LoraSettings, adapted
from ..model import LoadedModel
from .files import (
    ADAPTER_FILE,
    check_kinds,
    check_same_scales,
    fill,
    misread_layers,
    names_in_files,
    read_adapter,
    rename_tensors,
)
from .peft_adapters import attach, check_reached, detach, peft_config
from .targets import Part, Selection, Target, check_rank, reachable, select, short_names, without

#: Fixed rather than tied to the rank: with the product scaled by alpha / rank, the best learning rate then hardly
#: depends on the rank (https://thinkingmachines.ai/blog/lora/).
DEFAULT_ALPHA = 32.0


@usual_defaults()
def add_lora(
    model: LoadedModel,
    *,
    rank: int = 32,
    alpha: float | None = None,
    seed: int | None = None,
    train_mlp: bool = True,
    train_attn: bool = True,
    train_unembed: bool = False,
    targets: Sequence[str] | None = None,
    dropout: float = 0.0,
) -> LoadedModel:
    """Freeze the model and put y += (alpha / rank)·B A x on its linear layers, in place; returns the same model.

    A [rank, in] is Kaiming-uniform from `seed`, B [out, rank] is zero, so at first the outputs are unchanged; both
    are float32 (float64 in a float64 model). `alpha` is 32 by default; a seed that is not given is drawn, and kept in
    `model.lora.seed`. The global random state is left as it was.

    train_attn, train_mlp, train_unembed   the attention and recurrent layers, the MLP with all experts, the output head
    targets    instead: the names of layers, whole or in part ("q_proj", "layers.0.mlp"), or patterns ("*.layers.1?.*");
               the only way to adapt routers and gates of one row
    dropout    of the adapters' inputs in `forward_backward`, whatever the model's own dropout does

    Raises ModelError for a rank, alpha or dropout out of bounds, no part chosen, a chosen part without a linear layer, a name
    that matches nothing, dropout where it cannot be applied, or a model that has an adapter already.
    """
    if model.lora is not None:
        raise ModelError(f"{model.name} has a LoRA adapter already (rank {model.lora.rank}); load the model anew")
    alpha = DEFAULT_ALPHA if alpha is None else float(alpha)
    if not 0 < alpha < math.inf:
        raise ModelError(f"LoRA alpha must be positive and finite, not {alpha}")
    if isinstance(dropout, bool) or not 0 <= dropout < 1:
        raise ModelError(f"LoRA dropout must be at least 0 and below 1, not {dropout!r}")
    if targets is not None and not (train_mlp and train_attn):
        raise ModelError("choose layers by lora_targets, or parts by train_mlp and train_attn, not by both")
    if isinstance(targets, str):
        raise ModelError(f"lora_targets is a list of names or patterns, not the text {targets!r}: give [{targets!r}]")
    selection = _choose(model, train_mlp, train_attn, train_unembed, targets)
    check_rank(rank, selection.targets)
    named = None if targets is None else tuple(targets)
    seed = secrets.randbits(31) if seed is None else seed
    settings = LoraSettings(
        rank, alpha, train_mlp, train_attn, train_unembed, seed, named, float(dropout), selection.left_out
    )
    selection = _attach(model, settings, selection)
    check_reached(model, selection.targets)
    return model


def _attach(model: LoadedModel, settings: LoraSettings, selection: Selection) -> Selection:
    """Put adapters on what was selected, except for what peft would not read back; returns what has one."""
    attach(model, peft_config(model, settings, selection.targets), settings)
    misread = misread_layers(model)
    if not misread:
        return selection
    detach(model, {})
    if settings.targets is not None:
        raise ModelError(f"peft would not read an adapter on {min(misread)} of {model.name} back: name other layers")
    selection = without(selection, misread, "peft would not read its adapter back")
    settings = replace(settings, left_out=selection.left_out)
    attach(model, peft_config(model, settings, selection.targets), settings)
    return selection


def _choose(
    model: LoadedModel, train_mlp: bool, train_attn: bool, train_unembed: bool, targets: Sequence[str] | None = None
) -> Selection:
    """The weights that `add_lora` puts adapters on, given the same arguments. Raises ModelError as it does."""
    flags: dict[Part, bool] = {"attention": train_attn, "mlp": train_mlp, "unembed": train_unembed}
    parts: set[Part] = {part for part, wanted in flags.items() if wanted}
    selection = select(model, parts, targets)
    if targets is not None and train_unembed:
        head = select(model, ("unembed",), None)
        selection = Selection({**selection.targets, **head.targets}, selection.left_out)
    return selection


def adapted_names(model: LoadedModel) -> tuple[str, ...]:
    """The weights that have an adapter, layer numbers as *, each once and in order."""
    return short_names(name.removesuffix(".weight") for name in adapted(model.module))


def export_adapter(model: LoadedModel, directory: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as `peft.PeftModel.from_pretrained` reads them.

    Ranks call this together: adapters are whole on each, and the first writes. Raises ModelError when the model has no
    adapter, and on every rank what the first one raises.
    """
    with model.ranks.agree():
        if model.ranks.is_first:
            write_adapter(model, directory)


def write_adapter(model: LoadedModel, directory: str | Path) -> None:
    """The same by this process alone."""
    if model.adapter is None:
        raise ModelError(f"{model.name} has no LoRA adapter: call add_lora first, or save the whole model")
    others = {name: other for name, other in names_in_files(model).items() if other is not None}
    with disk.writing(Path(directory)):
        model.adapter.save_pretrained(str(directory), save_embedding_layers=False)
        if others:
            rename_tensors(Path(directory) / ADAPTER_FILE, others)


@usual_defaults()
def load_adapter_into(model: LoadedModel, directory: str | Path) -> LoadedModel:
    """Give the model the adapter in a directory, in place; returns the same model.

    A model without an adapter gets one of the directory's shape, ready to be trained further. One that has an
    adapter keeps its shape, and the file must fit it. Only safetensors are read.

    Raises CheckpointError when a file is missing, made for another model, or of an adapter that is more than A and B, such as
    DoRA or PiSSA, with the setting named; the model is then as it was before.
    """
    source = str(directory)
    config, tensors = read_adapter(Path(directory))
    if model.lora is not None:
        check_same_scales(model, config, source)
        fill(model, config, tensors, source)
        return model
    trained, whole = model.trainable(), reachable(model)
    try:
        attach(model, config, LoraSettings(config.r, float(config.lora_alpha), False, False, False, None))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"peft cannot put the adapter in {source!r} on {model.name}: {reason}") from error
    try:
        check_kinds(model, source)
        fill(model, config, tensors, source)
        model.lora = _settings_from(model, config, whole)
    except CheckpointError:
        detach(model, trained)
        raise
    return model


def _settings_from(model: LoadedModel, config: Any, whole: Mapping[str, Target]) -> LoraSettings:
    """The settings of `add_lora` that make the same adapter: whole parts where it adapts those, else the layers by name.

    whole: what adapters on all parts would be on.
    """
    names = adapted(model.module).keys()
    parts = {target.part for target in whole.values() if target.parameter in names}
    alpha, dropout, head = float(config.lora_alpha), float(config.lora_dropout), "unembed" in parts
    if names == {target.parameter for target in whole.values() if target.part in parts}:
        return LoraSettings(config.r, alpha, "mlp" in parts, "attention" in parts, head, None, None, dropout)
    layers = tuple(sorted(name.removesuffix(".weight") for name in names))
    return LoraSettings(config.r, alpha, True, True, False, None, layers, dropout)
