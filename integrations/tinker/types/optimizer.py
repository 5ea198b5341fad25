"""Optimizers: AdamW, which lossbook has, and Dimuon, whose calls are refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field, SerializeAsAny, SerializerFunctionWrapHandler, model_serializer

from .base import StrictBase

ModelID = str


class OptimizerConfigBase(StrictBase, extra="allow"):
    """An optimizer by its `type`, with whatever fields that one has."""

    type: str


class AdamOptimizerConfig(StrictBase):
    """AdamW."""

    type: Literal["adamw"] = "adamw"


class DimuonOptimizerConfig(StrictBase):
    """Dimuon, which lossbook does not have."""

    type: Literal["dimuon"] = "dimuon"
    version: Literal[1] = 1


OptimizerConfig = AdamOptimizerConfig | DimuonOptimizerConfig | SerializeAsAny[OptimizerConfigBase]


class AdamParams(StrictBase):
    """One AdamW step (decoupled weight decay). `grad_clip_norm=0` means no clipping."""

    learning_rate: float = 0.0001
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimParamsBase(StrictBase, extra="allow"):
    """One step of an optimizer by its `type`, with whatever fields that one has."""

    type: str


class DimuonParams(StrictBase, allow_inf_nan=False):
    """One step of Dimuon, which lossbook does not have."""

    type: Literal["dimuon"] = "dimuon"
    learning_rate: float = Field(ge=0)
    grad_clip_norm: float = 0.0
    beta1: float = Field(default=0.9, ge=0, lt=1)


OptimParams = AdamParams | DimuonParams | SerializeAsAny[OptimParamsBase]


class OptimStepRequest(StrictBase):
    """A step as Tinker's client sends it; also read from `adam_params` and `optimizer_params`, and dumped so."""

    optim_params: OptimParams = Field(validation_alias=AliasChoices("optim_params", "adam_params", "optimizer_params"))
    model_id: ModelID
    seq_id: int | None = None
    type: Literal["optim_step"] = "optim_step"

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = handler(self)
        if "optim_params" in fields:
            name = "adam_params" if isinstance(self.optim_params, AdamParams) else "optimizer_params"
            fields[name] = fields.pop("optim_params")
        return fields
