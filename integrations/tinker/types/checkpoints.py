"""Checkpoints and training runs, as saving returns them and `RestClient` lists them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, NoReturn

from .base import BaseModel
from .optimizer import AdamOptimizerConfig, OptimizerConfig

CheckpointType = Literal["training", "sampler", "external"]
SCHEME = "tinker://"
#: The kind of checkpoint by the second part of its path.
_KINDS: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


class Checkpoint(BaseModel):
    """A saved checkpoint. `expires_at` is None where it is kept."""

    checkpoint_id: str
    checkpoint_type: CheckpointType
    time: datetime
    tinker_path: str
    size_bytes: int | None = None
    public: bool = False
    user_metadata: dict[str, str] | None = None
    expires_at: datetime | None = None


class ParsedCheckpointTinkerPath(BaseModel):
    """`tinker://RUN/weights/NAME` in its parts; `checkpoint_id` is `weights/NAME`."""

    tinker_path: str
    training_run_id: str
    checkpoint_type: CheckpointType
    checkpoint_id: str

    @classmethod
    def from_tinker_path(cls, tinker_path: str) -> ParsedCheckpointTinkerPath:
        """Raises ValueError for a path of another form."""
        parts = tinker_path.removeprefix(SCHEME).split("/")
        if not tinker_path.startswith(SCHEME) or len(parts) != 3 or parts[1] not in _KINDS:
            raise ValueError(f"Invalid tinker path: {tinker_path} is not {SCHEME}RUN/{{{','.join(_KINDS)}}}/NAME")
        run, kind, name = parts
        return cls(
            tinker_path=tinker_path,
            training_run_id=run,
            checkpoint_type=_KINDS[kind],
            checkpoint_id=f"{kind}/{name}",
        )


class Cursor(BaseModel):
    """Which part of a list this is."""

    offset: int
    limit: int
    total_count: int


class CheckpointsListResponse(BaseModel):
    """Checkpoints; `cursor` is None for a list that is whole."""

    checkpoints: list[Checkpoint]
    cursor: Cursor | None = None


class TrainingRun(BaseModel):
    """A model in training, by whatever created it."""

    training_run_id: str
    base_model: str
    model_owner: str
    is_lora: bool
    corrupted: bool = False
    lora_rank: int | None = None
    last_request_time: datetime
    last_checkpoint: Checkpoint | None = None
    last_sampler_checkpoint: Checkpoint | None = None
    user_metadata: dict[str, str] | None = None


class TrainingRunsResponse(BaseModel):
    """A part of the list of training runs."""

    training_runs: list[TrainingRun]
    cursor: Cursor


class WeightsInfoResponse(BaseModel):
    """What a model must be like to load a checkpoint."""

    base_model: str
    optimizer_config: OptimizerConfig = AdamOptimizerConfig()
    is_lora: bool
    lora_rank: int | None = None
    train_unembed: bool | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None


class ExternalWeightsUrlsResponse(BaseModel):
    """Where each file of exported weights can be read, by its path in the checkpoint."""

    urls: dict[str, str]
    expires: datetime


class CopyWeightsResponse(BaseModel):
    """The path of a copy."""

    tinker_path: str


class CurrentCheckpointStorageUsageItem(BaseModel):
    """The checkpoints of one project."""

    project_id: str | None = None
    org_user_urn: str | None = None
    user_email: str | None = None
    user_name: str | None = None
    checkpoint_count: int
    size_bytes: int
    size_gigabytes: float
    estimated_monthly_cost_usd: float | None = None


class CurrentCheckpointStorageUsageResponse(BaseModel):
    """Checkpoints and their bytes by project. They have no price here."""

    effective_rate_usd_per_gigabyte_month: float | None = None
    data: list[CurrentCheckpointStorageUsageItem]


class _Saved(BaseModel):
    path: str

    def get_console_url(self) -> str:
        """The address of the checkpoint's folder: there is no console. Raises ValueError for a `path` of another form."""
        from ..settings import current
        from ..store.names import run_folder

        parsed = ParsedCheckpointTinkerPath.from_tinker_path(self.path)
        return (current().root / "runs" / run_folder(parsed.training_run_id) / parsed.checkpoint_id).as_uri()


class SaveWeightsResponse(_Saved):
    """The path of a saved state."""

    type: Literal["save_weights"] | None = None


class SaveWeightsForSamplerResponse(_Saved):
    """The path of weights that were saved for sampling."""

    type: Literal["save_weights_for_sampler"] | None = None

    def get_playground_url(self) -> NoReturn:
        """Refused: there is no playground. `create_sampling_client(path)` samples from it."""
        raise NotImplementedError(f"{self.path} lies in a folder of this machine: create_sampling_client reads it")


class SaveWeightsExternalResponse(BaseModel):
    """The path of exported weights."""

    path: str
    type: Literal["save_weights_external"] | None = None


class LoadWeightsResponse(BaseModel):
    """Which weights were loaded, into which model."""

    path: str | None = None
    model_id: str | None = None
    type: Literal["load_weights"] | None = None
