"""Tensor parallelism: each of k ranks holds its heads' and its columns' part of a layer's matrices, and computes with it.

A layer's input is the same on all k ranks. Matrices split by output features ("colwise": queries, keys, values, the first of an
MLP) give each rank the features of its own heads; those split by input features ("rowwise": what follows) give sums that are
added up over the ranks. So a layer takes two sums in its forward, and in its backward those of the gradients of what the colwise
matrices read. Which matrix is split how is transformers' plan for the architecture (`base_model_tp_plan`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ...datums.errors import ModelError
from ..model.model import LoadedModel
from .layers import separate_layers

#: Architectures whose gradients are tested against one process: a plan alone does not say that nothing else looks over the heads.
TRIED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "smollm3")
#: Styles of a plan: a matrix split by output features, one by input features, and a weight that is whole on every rank and whose
#: gradient each rank has for its own heads only.
COLUMNS, ROWS, PARTIAL = "colwise", "rowwise", "replicated_with_grad_allreduce"


class SplitLinear(nn.Module):
    """A linear layer of which this rank has a part.

    group  the ranks that have the parts
    whole  the whole weight and bias, where they were gathered; the layer then computes as if it were not split
    """

    def __init__(self, mesh: DeviceMesh, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.group = mesh.get_group()
        self.weight = weight
        self.bias = bias
        self.whole: tuple[Tensor, Tensor | None] | None = None

    def gather(self) -> None:
        """Have the whole weight on every rank, to compute alone. All ranks of the group call it together."""
        with torch.no_grad():
            self.whole = _full(self.weight), None if self.bias is None else _full(self.bias)


class ColumnLinear(SplitLinear):
    """[..., in] -> [..., out / k], of an input that all ranks have; its gradient is the sum over the ranks."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        bias = None if linear.bias is None else _part(linear.bias, mesh, 0)
        super().__init__(mesh, _part(linear.weight, mesh, 0), bias)

    def forward(self, x: Tensor) -> Tensor:
        """This rank's features."""
        if self.whole is not None:
            return nn.functional.linear(x, *self.whole)
        bias = None if self.bias is None else _local(self.bias)
        return nn.functional.linear(_Shared.apply(x, self.group), _local(self.weight), bias)


class RowLinear(SplitLinear):
    """[..., in / k] -> [..., out], the sum over the ranks; then the bias, which is whole on every rank."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__(mesh, _part(linear.weight, mesh, 1), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """All features, the same on every rank."""
        if self.whole is not None:
            return nn.functional.linear(x, *self.whole)
        total = _Summed.apply(nn.functional.linear(x, _local(self.weight)), self.group)
        return total if self.bias is None else total + self.bias.to(total.dtype)


class _Shared(torch.autograd.Function):
    """What all ranks have; each adds its part to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _sum(gradient, ctx.group), None


class _Summed(torch.autograd.Function):
    """The sum over the ranks, all of which have its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _part(parameter: Tensor, mesh: DeviceMesh, dim: int) -> nn.Parameter:
    """This rank's part of a parameter that all ranks have whole."""
    own = parameter.detach().chunk(mesh.size(), dim)[mesh.get_local_rank()].clone(memory_format=torch.contiguous_format)
    split = DTensor.from_local(
        own, mesh, [Shard(dim)], run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
    return nn.Parameter(split, parameter.requires_grad)


def _local(parameter: Tensor) -> Tensor:
    """This rank's part, with a graph."""
    assert isinstance(parameter, DTensor)
    return parameter.to_local()


def _full(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def check_tensor_parallel(model: LoadedModel, size: int) -> None:
    """Raise ModelError where a model's layers cannot be split over `size` ranks. Its weights are not read."""
    what = f"tensor_parallel={size}"
    if model.lora is not None:
        raise ModelError(f"{what} is for training all weights: adapters are not split. Leave it at 1")
    if model.base_weights == "4bit":
        raise ModelError(f"{what} is for whole weights: 4-bit ones are not split. Leave it at 1")
    config, plan = model.config, _plan(model)
    if model.kind == "encoder" or not plan:
        raise ModelError(
            f"transformers has no tensor-parallel plan for {model.name} ({config.model_type}): leave {what} out"
        )
    if config.model_type not in TRIED:
        raise ModelError(
            f"{what} was tried with {', '.join(TRIED)}, and {model.name} is a {config.model_type}: leave it at 1"
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % size:
            raise ModelError(f"{what} does not divide the {getattr(config, name)} {name} of {model.name}")
    layers, names = separate_layers(model), _names(model)
    if not layers:
        raise ModelError(f"{model.name} has no repeated layers of its own to split: leave {what} out")
    for layer in layers:
        _check_layer(layer, names, plan, f"{what}: the plan for {model.name}")


def _check_layer(layer: nn.Module, names: Mapping[int, str], plan: Mapping[str, str], whose: str) -> None:
    """Raise ModelError unless the plan says of every weight beside a split one how it lies."""
    of = {part: style for part in layer.modules() if (style := plan.get(_pattern(names[id(part)]))) is not None}
    split = {part for part, style in of.items() if style in (COLUMNS, ROWS)}
    for part, style in of.items():
        is_known = style == PARTIAL or (style in (COLUMNS, ROWS) and type(part) is nn.Linear)
        if not is_known:
            raise ModelError(
                f"{whose} splits {names[id(part)]} ({type(part).__name__}) {style!r}, which is not supported"
            )
    for block in layer.modules():
        if not any(child in split for child in block.children()):
            continue
        for part in block.modules():
            if part not in of and any(True for _ in part.parameters(recurse=False)):
                raise ModelError(
                    f"{whose} says nothing of {names[id(part)] or 'the model'}, beside layers that it splits"
                )


def split_layer(layer: nn.Module, model: LoadedModel, mesh: DeviceMesh) -> list[nn.Module]:
    """Put this rank's parts in place of a layer's matrices, which all ranks of the mesh have whole.

    Returns the parts that stay whole, and of whose gradients each rank has its own heads' part.
    """
    names, plan, partial = _names(model), _plan(model), list[nn.Module]()
    for block in list(layer.modules()):
        for key, part in list(block.named_children()):
            style = plan.get(_pattern(names[id(part)]))
            if style in (COLUMNS, ROWS):
                assert isinstance(part, nn.Linear)
                setattr(block, key, ColumnLinear(part, mesh) if style == COLUMNS else RowLinear(part, mesh))
            elif style == PARTIAL:
                partial.append(part)
    return partial


def _plan(model: LoadedModel) -> dict[str, str]:
    """transformers' plan of the repeated layers: styles by the names of their parts, with * for numbers."""
    plan = getattr(model.config, "base_model_tp_plan", None) or {}
    return {name: style for name, style in plan.items() if ".*." in name}


def _names(model: LoadedModel) -> dict[int, str]:
    return {id(part): name for name, part in model.backbone.named_modules()}


def _pattern(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
