"""A training client's state on disk: weights, optimizer, accumulated gradients and random state, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import CheckpointError, ModelError, located
from ..model.load import is_at_hand, load_model
from ..model.lora.lora import add_lora, export_adapter
from ..model.model import BaseWeights, LoadedModel
from ..model.snapshot import Snapshot
from ..model.value_head import add_value_head
from ..optim.adamw import AdamW
from .contents import Contents, check_groups, check_like, check_random, contents_of, plain_accumulated
from .files import MANIFEST_NAME
from .folder import Checkpoint, read_checkpoint, write_checkpoint


def save_training(
    root: Path, name: str, model: LoadedModel, optimizer: AdamW, accumulated: Mapping[str, Any], *, overwrite: bool
) -> Path:
    """Write everything that `load_training` needs to continue as if nothing had happened.

    Raises CheckpointError where weights or gradients are NaN or infinite: nothing could go on from there.
    """
    trainable = model.trainable()
    for what, values in (("weight", trainable), ("gradient", {key: p.grad for key, p in trainable.items()})):
        for key, tensor in values.items():
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"the {what} of {key!r} holds NaN or infinite numbers, so nothing could go on from this state. "
                    "discard_gradients clears gradients; load_state goes back to a checkpoint"
                )
    tensors: dict[str, Mapping[str, Tensor]] = {
        "weights": {key: p.detach() for key, p in trainable.items()},
        "optimizer": optimizer.state_tensors(),
        "random": {"cpu": torch.get_rng_state()},
    }
    if model.device.type == "cuda":
        tensors["random"] = {**tensors["random"], "cuda": torch.cuda.get_rng_state(model.device)}
    gradients = {key: p.grad for key, p in trainable.items() if p.grad is not None}
    if gradients:
        tensors["gradients"] = gradients
    manifest = {
        "kind": "training",
        "optimizer": optimizer.meta(),
        "accumulated": dict(accumulated),
        **_identity(model),
    }
    return write_checkpoint(root, name, tensors=tensors, manifest=manifest, overwrite=overwrite)


def load_training(path: Path, model: LoadedModel, optimizer: AdamW | None) -> dict[str, Any]:
    """Load a checkpoint's weights into `model`; with an `optimizer`, also its state, gradients and random state.

    Returns what had accumulated. Everything is read and checked first: on an error nothing has changed. Without an
    optimizer, gradients are cleared, and a value head that the checkpoint lacks keeps its weights.
    """
    checkpoint = read_checkpoint(path, names=["weights"] if optimizer is None else None)
    contents = contents_of(checkpoint)
    keeps_head = optimizer is None and contents.value_head is None
    if optimizer is not None and contents.kind == "training":
        check_groups(checkpoint, contents)
    check_matches(checkpoint, contents, model, keeps_head=keeps_head)
    parameters = _loaded(model, keeps_head)
    if optimizer is None:
        _assign(model, parameters, checkpoint.tensors["weights"], {})
        return {}
    if contents.optimizer is None:
        raise CheckpointError(
            f"{path} holds weights only, no optimizer state; load it with optimizer=False, or resume from a "
            "checkpoint that save_state wrote"
        )
    gradients, random = checkpoint.tensors.get("gradients", {}), checkpoint.tensors["random"]
    check_like(_file(checkpoint, "gradients"), gradients, parameters, complete=False)
    check_random(_file(checkpoint, "random"), random, model.device)
    try:
        state = optimizer.prepared(checkpoint.tensors["optimizer"], contents.optimizer.model_dump())
    except CheckpointError as error:
        raise located(error, str(_file(checkpoint, "optimizer"))) from None
    moved = {key: gradient.to(model.device) for key, gradient in gradients.items()}
    optimizer.restore(state)  # from here on nothing can fail
    torch.set_rng_state(random["cpu"])
    if model.device.type == "cuda" and "cuda" in random:
        torch.cuda.set_rng_state(random["cuda"], model.device)
    _assign(model, parameters, checkpoint.tensors["weights"], moved)
    return plain_accumulated(contents)


@torch.no_grad()
def _assign(
    model: LoadedModel,
    parameters: Mapping[str, Parameter],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> None:
    model.before_writing()
    for key, parameter in parameters.items():
        parameter.copy_(weights[key])
    for key, parameter in model.trainable().items():
        parameter.grad = gradients.get(key)


def save_weights(root: Path, name: str, model: LoadedModel, *, overwrite: bool) -> Path:
    """Write the trained weights alone; for a LoRA model also as an adapter that peft loads from the same folder."""
    adapter: dict[str, bytes] = {}
    if model.lora is not None:
        folder = Path(tempfile.mkdtemp(prefix="lossbook-adapter-"))
        try:
            export_adapter(model, folder)
            adapter = {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return write_checkpoint(
        root,
        name,
        tensors={"weights": {key: p.detach() for key, p in model.trainable().items()}},
        manifest={"kind": "weights", **_identity(model)},
        extra_files=adapter,
        overwrite=overwrite,
    )


def saved_model(
    checkpoint: Checkpoint,
    *,
    device: str | None,
    dtype: torch.dtype | None,
    base_model: str | None = None,
    known: Collection[str] = (),
    base_weights: BaseWeights = "full",
) -> LoadedModel:
    """The model that a checkpoint was saved from, with adapters and a value head like its own, of fresh weights.

    base_model   what the caller says it is
    known        models that the caller loaded before
    base_weights what its base weights must be; those of a service

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
        model = load_model(saved, device=device, dtype=dtype, base_weights=base_weights)
        if contents.lora is not None:
            add_lora(model, **contents.lora.arguments())
        else:
            model.train_all_weights()
        return add_value_head(model) if contents.value_head else model
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
) -> Snapshot:
    """A checkpoint's weights, in a model loaded for them; see `saved_model`.

    Raises CheckpointError where the checkpoint cannot be read, or was saved from another model than `base_model`.
    """
    checkpoint = read_checkpoint(Path(path), names=["weights"])
    model = saved_model(
        checkpoint, device=device, dtype=dtype, base_model=base_model, known=known, base_weights=base_weights
    )
    check_matches(checkpoint, contents_of(checkpoint), model)
    return Snapshot(model, {name: tensor.to(model.device) for name, tensor in checkpoint.tensors["weights"].items()})


def check_matches(checkpoint: Checkpoint, contents: Contents, model: LoadedModel, *, keeps_head: bool = False) -> None:
    """Raise CheckpointError with the first difference between a checkpoint's model and weights and the one that loads it.

    keeps_head: whether the model keeps its own value head.
    """
    _check_base_weights(checkpoint, contents, model.base_weights)
    own, saved = _identity(model), contents.model_dump()
    if contents.lora is not None:
        saved["lora"] = checkpoint.manifest["lora"]  # as it was written: what is as by default is left out
    if keeps_head:
        del own["value_head"]
    for key, value in own.items():
        if saved[key] != value:
            raise CheckpointError(
                f"{checkpoint.path} was saved with {key}={saved[key]!r}, but this model has {value!r}"
            )
    check_like(_file(checkpoint, "weights"), checkpoint.tensors["weights"], _loaded(model, keeps_head))


def _check_base_weights(checkpoint: Checkpoint, contents: Contents, base_weights: BaseWeights) -> None:
    """Raise CheckpointError where a checkpoint was trained on other base weights: on them its adapters give other numbers."""
    saved = contents.base_weights or "full"
    if saved != base_weights:
        raise CheckpointError(
            f"{checkpoint.path} was trained on {saved} base weights, but this model has {base_weights} ones: take "
            f"ServiceClient(base_weights={saved!r}), or --base-weights {saved}"
        )


def _file(checkpoint: Checkpoint, group: str) -> Path:
    return checkpoint.path / f"{group}.safetensors"


def _loaded(model: LoadedModel, keeps_head: bool) -> dict[str, Parameter]:
    """The parameters that are loaded from a checkpoint."""
    return {k: p for k, p in model.trainable().items() if not (keeps_head and k.startswith("value_head."))}


def _identity(model: LoadedModel) -> dict[str, Any]:
    """Properties that a checkpoint and the model that loads it must share."""
    return {
        "base_model": model.name,
        "vocab_size": model.vocab_size,
        "lora": None if model.lora is None else model.lora.to_json(),
        "value_head": None if model.value_head is None else True,  # absent in older checkpoints, which had none
        **({} if model.base_weights == "full" else {"base_weights": model.base_weights}),
    }
