"""Adapters as peft makes them: the configuration for chosen weights, wrapping the layers, and taking the wrappers off."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ....datums.errors import ModelError
from ..linear import LoraSettings, adapted, set_adapter_dropout
from ..model import LoadedModel
from ..tiny import seeded
from .targets import Target

if TYPE_CHECKING:
    from peft import LoraConfig


def attach(model: LoadedModel, config: LoraConfig, settings: LoraSettings) -> None:
    """Wrap the model's layers as the configuration says; on an error the model is as it was before."""
    from peft import get_peft_model

    trained = model.trainable()
    try:
        with warnings.catch_warnings(), seeded(settings.seed or 0):
            # The head's adapter is meant to change the head alone, also where its weight is tied to the embedding's.
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")  # GPT-2's head is a plain linear
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated"
            )  # peft reads it itself
            model.adapter = get_peft_model(model.module, config)  # type: ignore[arg-type]
    except BaseException:
        detach(model, trained)
        raise
    model.adapter.peft_config["default"].base_model_name_or_path = model.name
    set_adapter_dropout(model.module, on=False)  # new modules begin in training mode
    model.lora = settings


def detach(model: LoadedModel, trained: Mapping[str, nn.Parameter]) -> None:
    """Take all adapters off again; `trained` are the parameters that required a gradient before."""
    for name, layer in list(model.module.named_modules()):
        if not hasattr(layer, "lora_A") or name.rpartition(".")[2] == "base_layer":
            continue
        base: Any = layer
        while hasattr(base, "base_layer"):
            base = base.base_layer
        owner, _, leaf = name.rpartition(".")
        setattr(model.module.get_submodule(owner), leaf, base)
    if hasattr(model.module, "peft_config"):
        del model.module.peft_config
    model.lora = model.adapter = None
    for parameter in trained.values():
        parameter.requires_grad_(True)


def peft_config(model: LoadedModel, settings: LoraSettings, targets: Mapping[str, Target]) -> LoraConfig:
    from peft import LoraConfig

    config = LoraConfig(
        task_type="CAUSAL_LM" if model.kind == "decoder" else "FEATURE_EXTRACTION",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft annotates an int and computes with any number
        lora_dropout=settings.dropout,
        target_modules=[name for name, target in targets.items() if target.is_layer],
        target_parameters=[name for name, target in targets.items() if not target.is_layer],
    )
    _keep_from_conversion(model, config)
    parameters = sorted(config.target_parameters or [])
    layers = sorted(config.target_modules or [])
    config.target_parameters = parameters or None
    config.target_modules = layers if parameters else _shortest_names(model, layers)
    config.fan_in_fan_out = any(type(model.module.get_submodule(name)).__name__ == "Conv1D" for name in layers)
    if settings.dropout:
        _check_dropout(model, parameters, targets)
    return config


def _keep_from_conversion(model: LoadedModel, config: LoraConfig) -> None:
    """Give peft as parameters those layers that it would take for experts of an adapter of transformers 4.

    In models that had an MLP per expert, peft reads any `gate_proj`, `up_proj` and `down_proj` as the experts' parameters, also
    the full name of a dense layer or of a shared expert. A parameter's name it takes as it is.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for name in config.target_modules or ():
        probe: Any = copy.deepcopy(config)
        probe.target_modules, probe.target_parameters = {name}, None
        try:
            convert_peft_config_for_transformers(probe, model.module, None)
        except ValueError:  # "gate_proj without up_proj": it took it too
            taken.add(name)
            continue
        if name not in (probe.target_modules or ()):
            taken.add(name)
    config.target_modules = sorted(set(config.target_modules or ()) - taken)
    config.target_parameters = [*(config.target_parameters or ()), *(f"{name}.weight" for name in taken)]


def _check_dropout(model: LoadedModel, parameters: Sequence[str], targets: Mapping[str, Target]) -> None:
    if parameters:
        raise ModelError(
            f"peft cannot drop inputs of {parameters[0]} and others of {model.name}, which it adapts as parameters: leave "
            "--lora-dropout at 0, or leave these out with --no-train-mlp or --lora-targets"
        )
    if any(target.part == "unembed" for target in targets.values()):
        raise ModelError(
            "LoRA dropout does not apply to the output head: leave --lora-dropout at 0, or train_unembed off"
        )


def _shortest_names(model: LoadedModel, names: Sequence[str]) -> list[str]:
    """Last parts of the names ("q_proj") where they single out exactly these layers, as other tools expect to read."""
    short = {name.rsplit(".", 1)[-1] for name in names}
    meant = {name for name, _ in model.module.named_modules() if name.rsplit(".", 1)[-1] in short}
    return sorted(short) if meant == set(names) else list(names)


def check_reached(model: LoadedModel, targets: Mapping[str, Target]) -> None:
    """Raise ModelError unless peft put adapters on exactly the targets."""
    wanted = {target.parameter for target in targets.values()}
    differing = sorted(wanted ^ adapted(model.module).keys())
    if differing:
        detach(model, {})
        raise ModelError(
            f"peft put adapters on other weights of {model.name} than was asked for: {', '.join(differing[:3])}. Leave them "
            "out with --lora-targets, and please report it"
        )
