"""The JSON requests of Tinker's protocol, except samples (`samples.py`). Read them with `fields.parsed`.

A field that this server does not know is ignored, so that a newer client is understood. Where ignoring it would change numbers,
in the settings of an optimizer or an adapter, it is refused unless it asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from ...tinker.types import AdamParams, LoraConfig
from ...tinker.types.optimizer import OptimParamsBase
from ..refusals import Failed
from ..settings import Limits
from .fields import CheckpointName, Choices, Fields, Id, Metadata, Number, Request, Seconds, Text, TextMetadata, most

_OF_MODEL: Any = (("model_id", "seq_id", "seq"),)


class ClientConfig(Request):
    """`client/config` and `client/dynamic_config`."""

    sdk_version: Text = ""


class CreateSession(Request):
    """`create_session`."""

    tags: list[Text] = Field([])
    user_metadata: Metadata | None = None
    sdk_version: Text = ""
    project_id: Text | None = None
    display_name: Text | None = None


class Heartbeat(Request):
    """`session_heartbeat`."""

    session_id: Id


class _Reason(Fields):
    type: Text


class FinishSession(Request):
    """`sessions/{id}/finish`. reason.type: "success", "errored" or "interrupted"."""

    reason: _Reason
    detail: str | None = None


class Lora(Choices):
    """Adapters: their rank, and the parts of the model that have one."""

    rank: Annotated[int, Field(ge=1)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True

    def config(self) -> LoraConfig:
        """The same as the Tinker door has it. Raises Failed for a field that nobody here knows."""
        self.check_extra("lora_config")
        return LoraConfig.model_validate({name: getattr(self, name) for name in Lora.model_fields})


class Optimizer(Choices):
    """Which optimizer a model has: "adamw", with what belongs to it in further fields."""

    type: Text = "adamw"


class CreateModel(Request):
    """`create_model`: the model `{session_id}:train:{model_seq_id}`. Without lora_config all weights are trained."""

    NUMBERED: ClassVar = (("session_id", "model_seq_id", "model"),)
    session_id: Id
    model_seq_id: Annotated[int, Field(ge=0, lt=10**9)]
    base_model: Text
    user_metadata: Metadata | None = None
    lora_config: Lora | None = None
    optimizer_config: Optimizer = Optimizer()

    def check(self, limits: Limits) -> None:
        if self.lora_config is not None:
            most("lora_rank", "lora_config.rank", self.lora_config.rank, limits)


class GetInfo(Request):
    """`get_info`."""

    model_id: Id


UnloadModel = GetInfo


class JsonPass(Request):
    """`forward` and `forward_backward` of a client too old for this server: whose they are, so that their number is known."""

    model_id: Id | None = None
    seq_id: Number | None = None


class Adam(Choices):
    """One AdamW step, with Tinker's defaults."""

    learning_rate: float = 0.0001
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStep(Request):
    """`optim_step`: with `adam_params`, or `optimizer_params` of another optimizer by its `type`."""

    NUMBERED: ClassVar = _OF_MODEL
    model_id: Id
    seq_id: Number
    adam_params: Adam | None = Field(None, validation_alias=AliasChoices("adam_params", "optim_params"))
    optimizer_params: Optimizer | None = None

    @model_validator(mode="after")
    def _one(self) -> OptimStep:
        if (self.adam_params is None) == (self.optimizer_params is None):
            raise ValueError("optim_step needs adam_params, or optimizer_params, and not both")
        return self

    def params(self) -> AdamParams | OptimParamsBase:
        """What `optim_step` of the Tinker door takes. Raises Failed for a field of AdamW that nobody here knows."""
        if self.adam_params is not None:
            self.adam_params.check_extra("adam_params")
            return AdamParams.model_validate({name: getattr(self.adam_params, name) for name in Adam.model_fields})
        if self.optimizer_params is None or self.optimizer_params.type == "adamw":
            raise Failed("a step of AdamW is given as adam_params, not as optimizer_params", "user")
        return OptimParamsBase.model_validate(self.optimizer_params.model_dump())


class _Save(Request):
    NUMBERED: ClassVar = _OF_MODEL
    model_id: Id
    seq_id: Number
    ttl_seconds: Seconds | None = None


class SaveWeights(_Save):
    """`save_weights`: weights and optimizer. path: the checkpoint's name."""

    path: CheckpointName | None = None
    overwrite: bool = False
    user_metadata: TextMetadata | None = None


class SaveWeightsForSampler(_Save):
    """`save_weights_for_sampler`: a checkpoint of the name `path`, or without one a sampling session in memory."""

    path: CheckpointName | None = None
    sampling_session_seq_id: Number | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    user_metadata: TextMetadata | None = None

    @model_validator(mode="after")
    def _one(self) -> SaveWeightsForSampler:
        if self.path is None and self.sampling_session_seq_id is None:
            raise ValueError("path, a checkpoint's name, or sampling_session_seq_id is needed")
        return self


class SaveWeightsExternal(_Save):
    """`save_weights_external`: an adapter for other programs."""

    path: CheckpointName
    age_encryption_recipients: list[str] | None = None


class LoadWeights(Request):
    """`load_weights`: into a model that is there (`model_id`, `seq_id`), or as a new one (`session_id`, `model_seq_id`)."""

    NUMBERED: ClassVar = (("session_id", "model_seq_id", "model"), *_OF_MODEL)
    model_id: Id | None = None
    seq_id: Number | None = None
    session_id: Id | None = None
    model_seq_id: Annotated[int, Field(ge=0, lt=10**9)] | None = None
    path: Text
    optimizer: bool
    optimizer_config: Optimizer | None = None
    base_model: Text | None = None
    user_metadata: Metadata | None = None
    weights_access_token: str | None = None

    @model_validator(mode="after")
    def _one(self) -> LoadWeights:
        here, new = (self.model_id, self.seq_id), (self.session_id, self.model_seq_id)
        whole = [pair for pair in (here, new) if None not in pair]
        if len(whole) != 1 or any(pair != (None, None) for pair in (here, new) if pair not in whole):
            raise ValueError("load_weights needs model_id and seq_id, or session_id and model_seq_id, and not both")
        return self

    @property
    def is_new(self) -> bool:
        """Whether the load makes a model."""
        return self.session_id is not None


class CreateSamplingSession(Request):
    """`create_sampling_session`. model_path wins over base_model where both are given."""

    session_id: Id
    sampling_session_seq_id: Number
    base_model: Text | None = None
    model_path: Text | None = None

    @model_validator(mode="after")
    def _one(self) -> CreateSamplingSession:
        if self.base_model is None and self.model_path is None:
            raise ValueError("base_model or model_path is needed")
        return self


class JoinSamplingSession(Request):
    """`join_sampling_session`."""

    sampling_session_id: Id


class RetrieveFuture(Request):
    """`retrieve_future`."""

    STATUS: ClassVar = 400
    request_id: Id
    allow_metadata_only: bool = False


class CancelFuture(Request):
    """`cancel_future`."""

    STATUS: ClassVar = 400
    request_id: Id


class _Target(Fields):
    sampling_session_id: Id
    cloned_sampler_id: Number = 0


class RetrieveFutures(Request):
    """`retrieve_futures`: which samples of a sampling session have ended since `prev_cursor`."""

    STATUS: ClassVar = 400
    target: _Target
    prev_cursor: Number = 0
    timeout: Annotated[float, Field(ge=0)] | None = None
    retrieved_request_ids: list[Id] = Field([])


class LossInput(Fields):
    """An input of a custom loss: `logprobs` or a key of loss_fn_inputs; rank 0: scalar, 1: [T], 2: [T, K]."""

    name: Text
    rank: Literal[0, 1, 2]


class CreateCustomLoss(Request):
    """`create_custom_loss`. `graph` is as it came: `graphs.read_graph` reads it."""

    NUMBERED: ClassVar = (("session_id", "custom_loss_seq_id", "loss"),)
    session_id: Id
    custom_loss_seq_id: Number
    name: Text
    inputs: Annotated[list[LossInput], Field(min_length=1, max_length=16)]
    graph: dict[str, Any]

    def check(self, limits: Limits) -> None:
        nodes = self.graph.get("nodes")
        most("graph_nodes", "the number of graph.nodes", len(nodes) if isinstance(nodes, list) else 0, limits)


class WeightsInfo(Request):
    """`weights_info`."""

    tinker_path: Text


class SetTtl(Request):
    """`training_runs/{id}/checkpoints/{id}/ttl`. None: it stays."""

    ttl_seconds: Seconds | None = None


class Telemetry(Request):
    """`telemetry`: accepted and dropped. It carries tracebacks and headers of users."""
