"""`shard_model`: a model's weights over ranks, each layer gathered where it is computed."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from ...datums.errors import ModelError
from ..model.model import LoadedModel
from ..ranks import Ranks, check_width
from .layers import separate_layers
from .root import RankModule
from .sending import Sender
from .tensor_parallel import check_tensor_parallel, split_layer


def shard_model(model: LoadedModel, ranks: Ranks, *, tensor_parallel: int = 1) -> LoadedModel:
    """Shard a model over ranks, in place; returns it, with `ranks` and `root` set. All ranks call it together.

    Call it when the parameters that are trained have been chosen (`train_all_weights` or `add_lora`) and a value head, if any,
    was added. The model may lie in the host's memory: a part of it is on a GPU only when it is sharded. Every rank gets the first rank's numbers, whatever its own were; a module of the others may be on "meta".

    Each repeated layer, and all the rest together, are gathered for a forward or backward and freed after it. All weights: the
    trained ones are sharded, in their own dtype, and the gradient that arrives at a shard is the sum over the ranks. LoRA: the
    frozen weights are sharded; adapters and value head lie whole on every rank, and `sum_gradients` adds their gradients up.

    tensor_parallel: so many ranks (mates) share each layer's matrices and compute the same micro-batches; what they hold is then
    sharded over the others. Embeddings, norms and heads are whole for each of them.

    Raises ModelError for what cannot be sharded, and where the ranks hold different models.
    """
    if ranks.size == 1:
        return model
    _check(model, ranks, tensor_parallel)
    assert ranks.data is not None
    model.device = _device(ranks.data)
    meshes = None if tensor_parallel == 1 else _meshes(ranks.data, model.device.type, tensor_parallel)
    mesh = DeviceMesh.from_group(ranks.data, model.device.type) if meshes is None else meshes["data"]
    is_lora = model.lora is not None
    everything = RankModule(model.module, model.value_head)
    root = RankModule(model.module, None) if is_lora else everything
    sender, partial = Sender(everything, ranks, model.device), list[nn.Module]()
    for layer in separate_layers(model):
        sender.send(layer)
        if meshes is not None:
            partial += split_layer(layer, model, meshes["tensor"])
        fully_shard(layer, mesh=mesh, ignored_params=_trained(layer) if is_lora else None)
    sender.send(everything)
    fully_shard(root, mesh=mesh, ignored_params=_trained(root) if is_lora else None)
    model.ranks, model.root = ranks, root
    if meshes is not None:
        _meet_mates(model, root, meshes["tensor"], partial)
    _add_gradients_up(root)
    with torch.no_grad():
        model.inside(lambda: None)  # FSDP settles at the first forward which module is its root
        if not is_lora:
            _watch_gradients(model, root)
    return model


def _check(model: LoadedModel, ranks: Ranks, tensor_parallel: int) -> None:
    """Raise ModelError on every rank where the model cannot be sharded, or is not the same everywhere."""
    if tensor_parallel != 1:
        check_width(tensor_parallel, ranks.size)
        check_tensor_parallel(model, tensor_parallel)
    if model.root is not None:
        raise ModelError(f"{model.name} is sharded over ranks already")
    if model.base_weights == "4bit":
        raise ModelError(
            f"the base weights of {model.name} are 4-bit, which are not sharded over ranks: take base_weights='full', or one process"
        )
    if not hasattr(FSDPModule, "reset_iter_state"):
        raise ModelError(f"several ranks need torch 2.13 or later; this is {torch.__version__}")
    scalars = [name for name, parameter in model.module.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise ModelError(
            f"{model.name} has a weight without dimensions ({scalars[0]}), which cannot be sharded over ranks"
        )
    lora = None if model.lora is None else model.lora.to_json()
    settings = [("model", model.name), ("LoRA settings", lora), ("value head", model.value_head is not None)]
    for rank, others in enumerate(ranks.gather(settings)):
        for (what, own), (_, other) in zip(settings, others, strict=True):
            if own != other:
                raise ModelError(
                    f"ranks hold different models: the {what} is {own} on rank {ranks.rank} and {other} on rank {rank}"
                )


@functools.lru_cache(maxsize=8)
def _meshes(group: dist.ProcessGroup, device: str, width: int) -> DeviceMesh:
    """The ranks of the whole process group as places ("data") of `width` mates ("tensor"); one for all models."""
    assert dist.get_world_size(group) == dist.get_world_size()
    shape = dist.get_world_size() // width, width
    return init_device_mesh(device, shape, mesh_dim_names=("data", "tensor"))


def _meet_mates(model: LoadedModel, root: RankModule, mesh: DeviceMesh, partial: list[nn.Module]) -> None:
    """Let `model.ranks` know this rank's mates, and the root which parameters they hold alike."""
    group = mesh.get_group()
    model.ranks = replace(model.ranks, mates=Ranks(mesh.get_local_rank(), mesh.size(), data=group))
    parameters = model.trainable()
    root.copied = frozenset(name for name, p in parameters.items() if not _lies_over_mates(p))
    own = {id(p) for part in partial for p in part.parameters()}
    root.partial = frozenset(name for name, p in parameters.items() if id(p) in own)


def _lies_over_mates(parameter: nn.Parameter) -> bool:
    """Whether mates have a part each of a parameter."""
    return isinstance(parameter, DTensor) and "tensor" in (parameter.device_mesh.mesh_dim_names or ())


def _device(group: dist.ProcessGroup) -> torch.device:
    """Where the tensors of a process group lie: on this process's GPU, or in the host's memory."""
    if dist.get_backend(group) == "gloo":
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _trained(module: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in module.parameters() if parameter.requires_grad}


def _add_gradients_up(root: RankModule) -> None:
    """Let FSDP add gradients up, where it would take their mean: losses are divided by the count of the whole call before."""
    for part in root.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)  # else gloo is asked for a reduction that it lacks
    assert isinstance(root, FSDPModule)
    # A parameter without a gradient on one rank alone, such as an expert that no token chose, would shift the others' places.
    root.set_reduce_scatter_unused_params(True)


def _watch_gradients(model: LoadedModel, root: RankModule) -> None:
    """Note in `root.used` which sharded parameters get a gradient, by name: FSDP gives zeros to the others."""
    sharded = {id(parameter) for parameter in model.trainable().values()}
    for part in root.modules():
        if not isinstance(part, FSDPModule):
            continue
        part.unshard()  # the parameter that gets the gradient lives on when its memory is freed
        for name, parameter in model.trainable().items():
            if id(parameter) not in sharded:
                parameter.register_post_accumulate_grad_hook(lambda _parameter, name=name: root.used.add(name))
        part.reshard()
