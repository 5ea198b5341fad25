"""Which weights get a low-rank adapter: parts of the model, or names and patterns; and which are left out, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from ....datums.errors import ModelError, did_you_mean
from ..model import LoadedModel
from .reach import obstacles

Part = Literal["attention", "mlp", "unembed", "router"]

#: A weight belongs to the attention or the MLP when a part of its path does. Attention is asked first: BERT's
#: `attention.output.dense` is attention, its `output.dense` is not. Recurrent layers stand where attention would.
#: Any other name with "attn" or "attention" in it is of attention too, unless it is a norm's.
ATTENTION_PARTS = frozenset({"mixer", "temporal_block", "mamba", "conv", "short_conv", "recurrent", "mlstm_layer"})
MLP_PARTS = frozenset(
    {"mlp", "ffn", "feed_forward", "feedforward", "intermediate", "output", "mlp_block", "fc1", "fc2", "shared_mlp"}
    | {"block_sparse_moe", "moe", "dense_h_to_4h", "dense_4h_to_h"}
    | {"experts", "shared_expert", "shared_experts"}
)
#: Nemotron-H calls every block's inside `mixer`, also where it is an MLP; these names and paths settle it.
MLP_LEAVES = frozenset({"gate_proj", "up_proj", "down_proj", "gate_up_proj"})
#: peft refuses adapters on these layers of these architectures, whose fused kernels read the weight alone
#: (peft.tuners.tuners_utils, `_check_lora_target_modules_mamba`).
REFUSED_BY_PEFT = {
    kind: frozenset({"out_proj", "conv1d"}) for kind in ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
}


@dataclass(frozen=True)
class Target:
    """A weight that an adapter can be put on.

    name       of the linear layer; of the parameter itself, where peft adapts it as one (fused experts, routers)
    part       what it belongs to; None where that was not recognised
    sides      [rows, columns] of one matrix: the rank is at most the smaller
    is_layer   a linear layer, rather than a parameter
    """

    name: str
    part: Part | None
    sides: tuple[int, ...]
    is_layer: bool

    @property
    def parameter(self) -> str:
        """The parameter's name."""
        return f"{self.name}.weight" if self.is_layer else self.name


@dataclass(frozen=True)
class Selection:
    """The weights that get an adapter, and by name (layer numbers as *) the targeted weights that get none, with the
    reason.
    """

    targets: Mapping[str, Target]
    left_out: Mapping[str, str]


def select(model: LoadedModel, parts: Iterable[Part], named: Sequence[str] | None) -> Selection:
    """The weights of `parts`, or those that `named` names: whole names, their last parts ("q_proj") or patterns with *.

    Routers and gates of one row belong to no part: they have to be named. Runs one short forward pass, because an adapter on
    a layer that is never called, such as a vision tower's, would do nothing.

    Raises ModelError for a part without a weight and for a name that matches nothing or what cannot have an adapter.
    """
    candidates = {target.name: target for target in _candidates(model)}
    wanted = _of_parts(model, candidates, set(parts)) if named is None else _named(model, candidates, named)
    reasons = _unreachable(model, wanted)
    if named is not None and reasons:
        name, reason = next(iter(reasons.items()))
        raise ModelError(f"an adapter on {name} of {model.name} would do nothing: {reason}. Name other layers")
    targets = {name: target for name, target in wanted.items() if name not in reasons}
    if not targets:
        raise ModelError(f"no weight of {model.name} can get an adapter: {_listed(reasons)}. Train all weights instead")
    left_out = reasons if named is not None else {**reasons, **_without_adapter(model, candidates, set(parts))}
    return Selection(targets, {without_numbers(name): reason for name, reason in left_out.items()})


def without(selection: Selection, layers: Collection[str], reason: str) -> Selection:
    """The selection with some layers left out, for a reason."""
    targets = {name: target for name, target in selection.targets.items() if name not in layers}
    return Selection(targets, {**selection.left_out, **{without_numbers(name): reason for name in layers}})


def reachable(model: LoadedModel) -> dict[str, Target]:
    """All weights that an adapter on attention, MLP and output head would be on."""
    candidates = {
        target.name: target for target in _candidates(model) if target.part in ("attention", "mlp", "unembed")
    }
    reasons = _unreachable(model, candidates)
    return {name: target for name, target in candidates.items() if name not in reasons}


def check_rank(rank: int, targets: Mapping[str, Target]) -> None:
    """Raise ModelError unless the rank is an integer that every target's smaller side allows."""
    name, target = min(targets.items(), key=lambda item: min(item[1].sides))
    limit = min(target.sides)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= limit:
        raise ModelError(
            f"LoRA rank must be an integer from 1 to {limit}, the smaller side of the smallest layer "
            f"({name}, {' x '.join(map(str, target.sides))}), not {rank!r}"
        )


def without_numbers(name: str) -> str:
    """model.layers.3.mlp.up_proj as model.layers.*.mlp.up_proj."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def short_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names, layer numbers as *, each once and in order."""
    return tuple(sorted({without_numbers(name) for name in names}))


# --- what there is ----------------------------------------------------------------------------------------------------


def _candidates(model: LoadedModel) -> list[Target]:
    """Every linear layer; and every parameter of matrices outside of one that peft can adapt: experts and routers."""
    from transformers.pytorch_utils import Conv1D

    targets = []
    for name, module in model.module.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and not _returns_choices(module):
            is_linear = isinstance(module, nn.Linear)  # a 4-bit one holds its weight as bytes
            sides = (module.out_features, module.in_features) if is_linear else tuple(module.weight.shape)
            targets.append(Target(name, _part(model, name, module, sides), sides, True))
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if name and _is_matrices(name, module, leaf, parameter):
                part = _part(model, name, module, tuple(parameter.shape))
                targets.append(Target(f"{name}.{leaf}", part, tuple(parameter.shape[-2:]), False))
    return targets


def _is_matrices(name: str, module: nn.Module, leaf: str, parameter: Tensor) -> bool:
    if leaf.endswith("bias"):
        return False
    is_experts = "expert" in type(module).__name__.lower() or "experts" in name.split(".")
    return (parameter.dim() == 3 and is_experts) or (parameter.dim() == 2 and _is_router(module))


def _returns_choices(module: nn.Module) -> bool:
    """Whether a router is a linear layer by class alone: its forward returns scores and choices (Llama-4)."""
    return _is_router(module) and isinstance(module, nn.Linear) and type(module).forward is not nn.Linear.forward


def _is_router(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return "router" in kind or kind.endswith("gating")  # Moshi's GatingMLP is an MLP


def _part(model: LoadedModel, name: str, module: nn.Module, sides: tuple[int, ...]) -> Part | None:
    path = name.split(".")
    if model.has_head and module is _output_layer(model):
        return "unembed"
    owner = model.module.get_submodule(name.rpartition(".")[0])
    chooses = path[-1] in ("gate", "router") and any("experts" in child for child, _ in owner.named_children())
    if _is_router(module) or _is_router(owner) or chooses or (len(sides) == 2 and min(sides) == 1):
        return "router"
    if "experts" in path or "shared_experts" in path or ("mixer" in path and path[-1] in MLP_LEAVES):
        return "mlp"
    if any(part in ATTENTION_PARTS or ("att" in part and "norm" not in part) for part in path):
        return "attention"
    is_mlp = MLP_PARTS & set(path) or "expert" in type(module).__name__.lower()
    return "mlp" if is_mlp else None


def _output_layer(model: LoadedModel) -> object:
    layer = model.module.get_output_embeddings()  # type: ignore[operator]
    return getattr(layer, "base_layer", layer)


# --- what is meant ----------------------------------------------------------------------------------------------------


def _of_parts(model: LoadedModel, candidates: Mapping[str, Target], parts: set[Part]) -> dict[str, Target]:
    if not parts:
        raise ModelError("LoRA needs a part to train: train_attn, train_mlp or train_unembed")
    wanted = {name: target for name, target in candidates.items() if target.part in parts}
    unknown = any(target.part is None for target in candidates.values())
    for part in sorted(parts):
        if any(target.part == part for target in wanted.values()):
            continue
        if part == "unembed" or unknown or not wanted:  # else the model has no such part: Mamba has no MLP
            layers = ", ".join(short_names(candidates)) or "none"
            flag = {"attention": "--no-train-attn", "mlp": "--no-train-mlp", "unembed": "--no-train-unembed"}[part]
            raise ModelError(
                f"no linear layer of {model.name} ({type(model.module).__name__}) was recognised as {part}. Its linear "
                f"layers are: {layers}. Leave that part out ({flag}), or name layers with --lora-targets"
            )
    return wanted


def _named(model: LoadedModel, candidates: Mapping[str, Target], named: Sequence[str]) -> dict[str, Target]:
    wanted: dict[str, Target] = {}
    if not named:
        raise ModelError("lora_targets names no layer: give names such as q_proj, or patterns such as '*.layers.3.*'")
    for pattern in named:
        matches = {name: target for name, target in candidates.items() if _matches(name, pattern)}
        matches = {pattern: candidates[pattern]} if pattern in candidates else matches
        if not matches:
            others = [
                name for name, _ in model.module.named_parameters() if _matches(name.removesuffix(".weight"), pattern)
            ]
            if others:
                raise ModelError(
                    f"{others[0]} of {model.name}, which {pattern!r} names, is not a weight that LoRA can adapt"
                )
            leaves = sorted({part for name in candidates for part in name.split(".") if not part.isdigit()})
            raise ModelError(
                f"--lora-targets {pattern!r} matches no layer of {model.name}.{did_you_mean(pattern, leaves)} "
                f"There are: {', '.join(short_names(candidates))}"
            )
        wanted |= matches
    return {name: candidates[name] for name in candidates if name in wanted}


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is the name, a run of whole parts of it, or matches all of it or its end with *, ? or [...]."""
    if any(sign in pattern for sign in "*?["):
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
    return f".{pattern}." in f".{name}."


# --- what is reached --------------------------------------------------------------------------------------------------


def _unreachable(model: LoadedModel, wanted: Mapping[str, Target]) -> dict[str, str]:
    """The wanted weights on which an adapter would do nothing or is refused, with the reason."""
    kind = str(getattr(model.config, "model_type", ""))
    refused = REFUSED_BY_PEFT.get(kind, frozenset())
    owners = {name: name if target.is_layer else name.rpartition(".")[0] for name, target in wanted.items()}
    called = model.of_first(lambda: obstacles(model, owners))
    reasons = {}
    for name, target in wanted.items():
        if target.part == "unembed" or ".experts." in f".{name}.":  # a few tokens do not reach every expert
            continue
        if name.rsplit(".", 1)[-1] in refused:
            reasons[name] = f"peft refuses it in {kind} models"
        elif name not in called:
            reasons[name] = "text does not reach it, or its weight is read without calling the layer"
        elif reason := called[name]:
            reasons[name] = reason
    return reasons


def _without_adapter(model: LoadedModel, candidates: Mapping[str, Target], parts: set[Part]) -> dict[str, str]:
    """Weights of the wanted parts that are no linear layer, and routers, with the reason that they get no adapter."""
    reasons = {name: "chooses experts; name it to adapt it" for name, t in candidates.items() if t.part == "router"}
    unknown = "by its name neither attention nor MLP; name it to adapt it"
    reasons |= {name: unknown for name, t in candidates.items() if t.part is None}
    embeddings = {id(p) for m in model.module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for name, parameter in model.module.named_parameters():
        layer = name.rpartition(".")[0]
        if name in candidates or layer in candidates or parameter.dim() < 2 or id(parameter) in embeddings:
            continue
        module = model.module.get_submodule(layer)
        if not name.endswith("bias") and _part(model, layer, module, (2, 2)) in {*parts, None}:
            reasons[name.removesuffix(".weight")] = f"no linear layer ({type(module).__name__})"
    return reasons


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:3])
