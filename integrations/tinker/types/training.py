"""What is asked of a model in training, and what its calls return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ....datums.tensors import TensorData
from ....losses.stats import Kind
from .base import BaseModel, StrictBase
from .datum import Datum

#: The ids of Tinker's losses. `forward_backward` of lossbook takes the id of any registered loss too.
LossFnType = Literal[
    "cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo", "stable_reinforce", "custom"
]
LossFnOutput = dict[str, TensorData]
CustomLossInputRank = Literal[0, 1, 2]


class LoraConfig(StrictBase):
    """Adapters: their rank, and the parts of the model that have one."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CustomLossInput(StrictBase):
    """What a traced loss reads: `logprobs` or a key of `loss_fn_inputs`; rank 0: scalar, 1: [T], 2: [T, K]."""

    name: str
    rank: CustomLossInputRank


@dataclass(frozen=True)
class ForwardBackwardInput:
    """The data of one call, and the loss with its settings."""

    data: list[Datum]
    loss_fn: LossFnType
    loss_fn_config: Mapping[str, float | str] | None = None


class Metrics(dict[str, float]):
    """Metrics of a call. kinds: how those of lossbook merge with the same of another call."""

    def __init__(self, values: Mapping[str, float], kinds: Mapping[str, Kind]) -> None:
        super().__init__(values)
        self.kinds = dict(kinds)


@dataclass(frozen=True)
class ForwardBackwardOutput:
    """loss_fn_outputs: one dict per datum, in order; `["logprobs"]` has the shape of its target_tokens (nats).

    metrics: `loss:sum` is the loss whose gradient was added; the others by their names in lossbook.
    """

    loss_fn_output_type: str
    loss_fn_outputs: list[LossFnOutput]
    metrics: dict[str, float] = field(default_factory=dict)


class OptimStepResponse(BaseModel):
    """What a step measured."""

    metrics: dict[str, float] | None = None
