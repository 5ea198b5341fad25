"""The model that a checkpoint was saved from: made anew, and compared with the one that loads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import CheckpointError, ModelError
from ..choices import BaseWeights
from ..model.load import is_at_hand, load_model
from ..model.lora.lora import add_lora
from ..model.model import LoadedModel
from ..model.snapshot import Snapshot
from ..model.value_head import add_value_head
from ..ranks import ALONE, Ranks
from ..shards import local, part_of
from .contents import Contents, check_like, contents_of
from .folder import Checkpoint, read_checkpoint
from .manifest import MANIFEST_NAME


def saved_model(
    checkpoint: Checkpoint,
    *,
    device: str | None,
    dtype: torch.dtype | None,
    base_model: str | None = None,
    known: Collection[str] = (),
    base_weights: BaseWeights = "full",
    ranks: Ranks = ALONE,
    load_base: Callable[..., LoadedModel] = load_model,
) -> LoadedModel:
    """The model that a checkpoint was saved from, with adapters and a value head like its own, of fresh weights.

    base_model   what the caller says it is
    known        models that the caller loaded before
    base_weights what its base weights must be; those of a service
    ranks        which make it together, and shard it next; see `load_model`
    load_base    loads the frozen weights under adapters, given the arguments of `load_model`

    A checkpoint does not decide what is downloaded: its base model must be given or known, be built in or a folder or file
    here, or be in the hub's cache. Raises CheckpointError for others, where `base_model` or `base_weights` is not the saved
    one, and where the model or its adapter cannot be made.
    """
    contents = contents_of(checkpoint)
    saved = contents.base_model
    if base_model is not None and base_model != saved:
        raise CheckpointError(f"{checkpoint.path} was saved from {saved!r}, not from {base_model!r}")
    if base_model is None and saved not in known and not is_at_hand(saved):
        raise CheckpointError(
            f"{checkpoint.path} was saved from {saved!r}, which is neither here nor in the hub's cache, and a checkpoint does "
            f"not decide what is downloaded. Give base_model={saved!r} if you trust it, or fetch it first (hf download)"
        )
    _check_base_weights(checkpoint, contents, base_weights)
    try:
        options: dict[str, Any] = {"device": device, "dtype": dtype, "base_weights": base_weights, "ranks": ranks}
        options["masked_lm_head"] = contents.masked_lm_head is True
        if contents.lora is not None:
            model = add_lora(load_base(saved, **options), **contents.lora.arguments())
        else:
            model = load_model(saved, **options).train_all_weights()
        return add_value_head(model, contents.projection_head_dim or 1) if contents.value_head else model
    except ModelError as error:
        raise CheckpointError(
            f"{checkpoint.path / MANIFEST_NAME} describes a model that cannot be made: {error}"
        ) from error


def load_snapshot(
    path: str,
    *,
    device: str | None,
    dtype: torch.dtype | None,
    base_model: str | None = None,
    known: Collection[str] = (),
    base_weights: BaseWeights = "full",
    ranks: Ranks = ALONE,
    prepare: Callable[[LoadedModel], object] = lambda model: None,
    load_base: Callable[..., LoadedModel] = load_model,
) -> Snapshot:
    """A checkpoint's weights, in a model made for them; see `saved_model`. prepare: fuses or shards the model, in place.

    Raises CheckpointError where the checkpoint cannot be read, or was saved from another model than `base_model`.
    """
    options: dict[str, Any] = {"base_model": base_model, "known": known, "base_weights": base_weights, "ranks": ranks}
    options["load_base"] = load_base
    several = ranks.size > 1  # which read their parts of the weights, once they know them
    checkpoint = read_checkpoint(Path(path), names=[] if several else ["weights"], ranks=ranks)
    model = saved_model(checkpoint, device=device, dtype=dtype, **options)
    prepare(model)
    if several:
        parts = {name: part_of(p, model.ranks) for name, p in model.trainable().items()}
        checkpoint = read_checkpoint(Path(path), names=["weights"], ranks=ranks, parts={"weights": parts})
    with ranks.agree():
        check_matches(checkpoint, contents_of(checkpoint), model)
    return Snapshot(model, {name: tensor.to(model.device) for name, tensor in checkpoint.tensors["weights"].items()})


def check_matches(checkpoint: Checkpoint, contents: Contents, model: LoadedModel, *, keeps_head: bool = False) -> None:
    """Raise CheckpointError with the first difference between a checkpoint's model and weights and the one that loads it.

    keeps_head: whether the model keeps its own value head.
    """
    _check_base_weights(checkpoint, contents, model.base_weights)
    if model.masked_lm_head != (contents.masked_lm_head is True):
        has, other = ("without", "one with") if model.masked_lm_head else ("with", "one without")
        raise CheckpointError(
            f"{checkpoint.path} was saved from an encoder {has} its masked-LM head, but this model is {other} it: make it with "
            f"masked_lm_head={not model.masked_lm_head}"
        )
    own, saved = identity_of(model), contents.model_dump()
    if contents.lora is not None:
        saved["lora"] = checkpoint.manifest["lora"]  # as it was written: what is as by default is left out
    if keeps_head:
        own = {key: value for key, value in own.items() if key not in ("value_head", "projection_head_dim")}
    for identity in (own, saved):
        if identity["lora"] is not None:  # whatever the initial values were drawn from, they are replaced
            identity["lora"] = {name: value for name, value in identity["lora"].items() if name != "seed"}
    for key, value in own.items():
        if saved[key] != value:
            raise CheckpointError(
                f"{checkpoint.path} was saved with {key}={saved[key]!r}, but this model has {value!r}"
            )
    check_like(
        checkpoint.file("weights"), checkpoint.tensors["weights"], locals_of(loaded_parameters(model, keeps_head))
    )


def _check_base_weights(checkpoint: Checkpoint, contents: Contents, base_weights: BaseWeights) -> None:
    """Raise CheckpointError where a checkpoint was trained on other base weights: on them its adapters give other numbers."""
    saved = contents.base_weights or "full"
    if saved != base_weights:
        raise CheckpointError(
            f"{checkpoint.path} was trained on {saved} base weights, but this model has {base_weights} ones: take "
            f"ServiceClient(base_weights={saved!r}), or --base-weights {saved}"
        )


def locals_of(parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """What this rank holds of each."""
    return {key: local(parameter) for key, parameter in parameters.items()}


def loaded_parameters(model: LoadedModel, keeps_head: bool) -> dict[str, Parameter]:
    """The parameters that are loaded from a checkpoint."""
    return {k: p for k, p in model.trainable().items() if not (keeps_head and k.startswith("value_head."))}


def identity_of(model: LoadedModel) -> dict[str, Any]:
    """Properties that a checkpoint and the model that loads it must share."""
    numbers = 1 if model.value_head is None else model.value_head.out_features
    return {
        "base_model": model.name,
        "vocab_size": model.vocab_size,
        "lora": None if model.lora is None else model.lora.to_json(),
        "value_head": None if model.value_head is None else True,  # absent in older checkpoints, which had none
        **({} if numbers == 1 else {"projection_head_dim": numbers}),
        **({} if model.base_weights == "full" else {"base_weights": model.base_weights}),
        **({"masked_lm_head": True} if model.masked_lm_head else {}),
    }
