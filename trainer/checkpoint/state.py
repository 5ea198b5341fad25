"""A training client's state on disk: weights, optimizer, accumulated gradients and random state, bit for bit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ...datums.errors import CheckpointError, located
from ..model.lora.lora import write_adapter
from ..model.model import LoadedModel
from ..optim.adamw import AdamW
from ..optim.state import STATE_KEYS
from ..shards import Part, is_sharded, local, part_of, placed_like
from .contents import check_groups, check_like, check_random, contents_of, plain_accumulated
from .folder import Checkpoint, read_checkpoint, write_checkpoint
from .models import check_matches, identity_of, loaded_parameters, locals_of


def save_training(
    root: Path, name: str, model: LoadedModel, optimizer: AdamW, accumulated: Mapping[str, Any], *, overwrite: bool
) -> Path:
    """Write everything that `load_training` needs to continue as if nothing had happened.

    Of a model that lies over ranks each writes what it holds; all of them call this together, with the same arguments.
    Raises CheckpointError, on every rank, where weights or gradients are NaN or infinite: nothing could go on from there.
    """
    ranks, trainable = model.ranks, model.trainable()
    gradients = {key: p.grad for key, p in trainable.items() if p.grad is not None}
    with ranks.agree():
        _check_finite("weight", trainable)
        _check_finite("gradient", gradients)
        moments = optimizer.state_tensors()
        cut = _cut(model, trainable, moments, gradients)
        random = {"cpu": torch.get_rng_state()}
        if model.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(model.device)
    tensors: dict[str, Mapping[str, Tensor]] = {
        "weights": {key: local(p) for key, p in trainable.items()},
        "optimizer": moments,
        "random": random,
    }
    if gradients:
        tensors["gradients"] = {key: local(gradient) for key, gradient in gradients.items()}
    manifest = {
        "kind": "training",
        "optimizer": optimizer.meta(),
        "accumulated": dict(accumulated),
        **identity_of(model),
    }
    return write_checkpoint(root, name, tensors=tensors, manifest=manifest, overwrite=overwrite, ranks=ranks, parts=cut)


def _check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(local(tensor)).all()):
            raise CheckpointError(
                f"the {what} of {key!r} holds NaN or infinite numbers, so nothing could go on from this state. "
                "discard_gradients clears gradients; load_state goes back to a checkpoint"
            )


def load_training(path: Path, model: LoadedModel, optimizer: AdamW | None) -> dict[str, Any]:
    """Load a checkpoint's weights into `model`; with an `optimizer`, also its state, gradients and random state.

    Returns what had accumulated. Everything is read and checked first: on an error nothing has changed, on any rank. Without
    an optimizer, gradients are cleared, and a value head that the checkpoint lacks keeps its weights. Ranks call this
    together; it does not matter over how many the checkpoint was written.
    """
    ranks, trainable = model.ranks, model.trainable()
    moments = [f"{key}.{name}" for name in trainable for key in STATE_KEYS]
    checkpoint = read_checkpoint(
        path,
        names=["weights"] if optimizer is None else None,
        ranks=ranks,
        parts=_cut(model, trainable, moments, trainable),
    )
    with ranks.agree():
        take = _checked(checkpoint, model, optimizer)
    return take()  # nothing in it can fail


def _checked(checkpoint: Checkpoint, model: LoadedModel, optimizer: AdamW | None) -> Callable[[], dict[str, Any]]:
    """What remains to be done when a checkpoint is known to fit: take its state, and return what had accumulated."""
    contents = contents_of(checkpoint)
    keeps_head = optimizer is None and contents.value_head is None
    if optimizer is not None and contents.kind == "training":
        check_groups(checkpoint, contents)
    check_matches(checkpoint, contents, model, keeps_head=keeps_head)
    parameters, weights = loaded_parameters(model, keeps_head), checkpoint.tensors["weights"]
    if optimizer is None:

        def take_weights() -> dict[str, Any]:
            _assign(model, parameters, weights, {})
            return {}

        return take_weights
    if contents.optimizer is None:
        raise CheckpointError(
            f"{checkpoint.path} holds weights only, no optimizer state; load it with optimizer=False, or resume from a "
            "checkpoint that save_state wrote"
        )
    gradients, random = checkpoint.tensors.get("gradients", {}), checkpoint.tensors["random"]
    check_like(checkpoint.file("gradients"), gradients, locals_of(parameters), complete=False)
    check_random(checkpoint.file("random"), random, model.device)
    try:
        state = optimizer.prepared(checkpoint.tensors["optimizer"], contents.optimizer.model_dump())
    except CheckpointError as error:
        raise located(error, str(checkpoint.file("optimizer"))) from None
    moved = {key: gradient.to(model.device) for key, gradient in gradients.items()}

    def take_all() -> dict[str, Any]:
        optimizer.restore(state)
        torch.set_rng_state(random["cpu"])
        if model.device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], model.device)
        _assign(model, parameters, weights, moved)
        return plain_accumulated(contents)

    return take_all


@torch.no_grad()
def _assign(
    model: LoadedModel,
    parameters: Mapping[str, Parameter],
    weights: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> None:
    model.before_writing()
    for key, parameter in parameters.items():
        local(parameter).copy_(weights[key])
    for key, parameter in model.trainable().items():
        gradient = gradients.get(key)
        parameter.grad = None if gradient is None else placed_like(gradient, parameter)


def save_weights(root: Path, name: str, model: LoadedModel, *, overwrite: bool) -> Path:
    """Write the trained weights alone; for a LoRA model also as an adapter that peft loads from the same folder.

    Ranks call this together. What lies over them is written by each; adapters are whole on each, and the first writes them.
    """
    ranks, trainable = model.ranks, model.trainable()
    adapter: dict[str, bytes] = {}
    with ranks.agree():
        if model.lora is not None and ranks.is_first:
            adapter = _adapter_files(model)
    return write_checkpoint(
        root,
        name,
        tensors={"weights": {key: local(p) for key, p in trainable.items()}},
        manifest={"kind": "weights", **identity_of(model)},
        extra_files=adapter,
        overwrite=overwrite,
        ranks=ranks,
        parts=_cut(model, trainable, (), ()),
    )


def _adapter_files(model: LoadedModel) -> dict[str, bytes]:
    """The files of an adapter as peft reads it, by name."""
    folder = Path(tempfile.mkdtemp(prefix="lossbook-adapter-"))
    try:
        write_adapter(model, folder)
        return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cut(
    model: LoadedModel, trainable: Mapping[str, Tensor], moments: Iterable[str], gradients: Iterable[str]
) -> dict[str, dict[str, Part]] | None:
    """Which part this rank holds of each weight, moment and gradient, by group; None where all of them are whole.

    Moments and gradients lie as their parameters do. Step counts are the same on all ranks, and the first one's are stored.
    """
    if not is_sharded(trainable):
        return None
    parts = {key: part_of(p, model.ranks) for key, p in trainable.items()}
    count = Part((), (), (), model.ranks.is_first)
    of_moments = {key: count if key.startswith("step.") else parts[key.partition(".")[2]] for key in moments}
    groups = {"weights": parts, "optimizer": of_moments, "gradients": {key: parts[key] for key in gradients}}
    return {group: of for group, of in groups.items() if of}
