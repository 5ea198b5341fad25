"""A training client's state on disk: weights, optimizer, accumulated gradients and random state, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import CheckpointError
from ..model.load import load_model
from ..model.lora.lora import add_lora, export_adapter
from ..model.model import LoadedModel
from ..model.snapshot import Snapshot
from ..model.value_head import add_value_head
from ..optim.adamw import AdamW
from .folder import Checkpoint, read_checkpoint, write_checkpoint


def save_training(
    root: Path, name: str, model: LoadedModel, optimizer: AdamW, accumulated: Mapping[str, Any], *, overwrite: bool
) -> Path:
    """Write everything that `load_training` needs to continue as if nothing had happened."""
    trainable = model.trainable()
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
    optimizer, a value head that the checkpoint lacks keeps its weights.
    """
    checkpoint = read_checkpoint(path)
    keeps_head = optimizer is None and not checkpoint.manifest.get("value_head")
    check_matches(checkpoint, model, keeps_head=keeps_head)
    gradients: Mapping[str, Tensor] = {}
    if optimizer is not None:
        if "optimizer" not in checkpoint.tensors:
            raise CheckpointError(
                f"{path} holds weights only, no optimizer state; load it with optimizer=False, or resume from a "
                "checkpoint that save_state wrote"
            )
        gradients = checkpoint.tensors.get("gradients", {})
        optimizer.load_state_tensors(checkpoint.tensors["optimizer"], checkpoint.manifest["optimizer"])
        torch.set_rng_state(checkpoint.tensors["random"]["cpu"])
        if model.device.type == "cuda" and "cuda" in checkpoint.tensors["random"]:
            torch.cuda.set_rng_state(checkpoint.tensors["random"]["cuda"], model.device)
    with torch.no_grad():
        for key, parameter in _loaded(model, keeps_head).items():
            parameter.copy_(checkpoint.tensors["weights"][key])
            parameter.grad = gradients[key].to(parameter.device) if key in gradients else None
    return dict(checkpoint.manifest["accumulated"]) if optimizer is not None else {}


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


def load_snapshot(
    path: str, *, device: str | None, dtype: torch.dtype | None, base_model: str | None = None
) -> Snapshot:
    """A checkpoint's weights, in a model loaded for them.

    Raises CheckpointError where the checkpoint cannot be read, or was saved from another model than `base_model`.
    """
    checkpoint = read_checkpoint(Path(path), names=["weights"])
    saved = checkpoint.manifest["base_model"]
    if base_model is not None and base_model != saved:
        raise CheckpointError(f"{path} was saved from {saved!r}, not from {base_model!r}")
    model = load_model(saved, device=device, dtype=dtype)
    if (lora := checkpoint.manifest.get("lora")) is not None:
        add_lora(model, **lora)
    else:
        model.train_all_weights()
    if checkpoint.manifest.get("value_head"):
        add_value_head(model)
    check_matches(checkpoint, model)
    return Snapshot(model, {name: tensor.to(model.device) for name, tensor in checkpoint.tensors["weights"].items()})


def check_matches(checkpoint: Checkpoint, model: LoadedModel, *, keeps_head: bool = False) -> None:
    """Raise CheckpointError with the first difference between a checkpoint and the model that loads it.

    keeps_head: whether the model keeps its own value head.
    """
    own, saved = _identity(model), checkpoint.manifest
    if keeps_head:
        del own["value_head"]
    for key, value in own.items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"{checkpoint.path} was saved with {key}={saved.get(key)!r}, but this model has {value!r}"
            )
    weights = checkpoint.tensors.get("weights", {})
    for key, parameter in _loaded(model, keeps_head).items():
        if key not in weights:
            raise CheckpointError(f"{checkpoint.path} has no weight {key!r}")
        if weights[key].shape != parameter.shape or weights[key].dtype != parameter.dtype:
            raise CheckpointError(
                f"{checkpoint.path}: weight {key!r} is {list(weights[key].shape)} {weights[key].dtype}, but the model's is "
                f"{list(parameter.shape)} {parameter.dtype}"
            )


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
    }
