"""What a server is told when it starts: its address, keys, models, folders and limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Limits(BaseModel):
    """The most of everything that a client can ask for; more is refused with the limit's name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body_bytes: Count = Field(default=64 * 2**20, description="bytes of a request, also after decompression")
    json_depth: Count = Field(default=64, description="levels of nesting in a JSON body")
    json_values: Count = Field(default=1_000_000, description="values in a JSON body, or fields of a protobuf one")
    datums: Count = Field(default=8192, description="datums of a request")
    tokens: Count = Field(default=4_000_000, description="tokens of a request, all datums together")
    chunks: Count = Field(default=4096, description="chunks of a model input")
    columns: Count = Field(default=1024, description="target tokens per position")
    inputs: Count = Field(default=64, description="loss inputs of a datum, or settings of a loss")
    numbers: Count = Field(
        default=50_000_000, description="numbers of a request's loss inputs, sparse ones written out"
    )
    samples: Count = Field(default=1024, description="num_samples of a request")
    sampled_tokens: Count = Field(default=1_000_000, description="num_samples times max_tokens of a request")
    stop_strings: Count = Field(default=64, description="entries of `stop`")
    top_k: Count = Field(default=1024, description="likeliest tokens per position of a sample or prompt")
    lora_rank: Count = Field(default=512, description="rank of an adapter")
    graph_nodes: Count = Field(default=512, description="nodes of a custom loss")
    graph_elements: Count = Field(default=50_000_000, description="numbers that a custom loss makes for one datum")
    graph_seconds: Seconds = Field(default=60, description="seconds that custom losses of a request may run")
    losses_per_session: Count = Field(default=64, description="custom losses of a session")
    sessions_per_key: Count = Field(default=1000, description="open sessions of a key")
    models_per_key: Count = Field(default=100, description="models of a key's open sessions")
    requests_per_key: Count = Field(default=10_000, description="requests of a key that wait or run")
    header_seconds: Seconds = Field(
        default=30, description="seconds that a request's headers and body may take to arrive"
    )


class ServeSettings(BaseModel):
    """How a server runs. Defaults are safe on one's own machine: loopback, SQLite, one owner."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: str = Field("127.0.0.1", description="address to listen at; another than loopback needs keys")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port; 0 takes a free one")
    root: Path = Field(Path("checkpoints") / "serve", description="folder of checkpoints, runs and the database")
    database: str | None = Field(None, description="SQLAlchemy URL; SQLite in `root` by default")
    keys: tuple[str, ...] = Field((), description="API keys; each owns what is made with it. Without any, all share")
    models: dict[str, str] = Field(
        {"tiny": "tiny"}, description="base models that clients may ask for: name to folder, .gguf file, hub id or tiny"
    )
    hosts: tuple[str, ...] = Field(
        (), description="names in the Host header that are answered, beside the address itself"
    )
    insecure: bool = Field(False, description="listen elsewhere than at loopback without keys")
    device: str | None = Field(None, description="cpu, cuda, ... (default: the best available)")
    dtype: Literal["float32", "bfloat16", "float64"] | None = Field(None, description="dtype of the models' weights")
    base_weights: Literal["full", "4bit"] = Field("full", description="4bit: frozen weights in 4 bits, under adapters")
    tokens_per_micro_batch: Count | None = Field(None, description="most tokens that run together")
    workers: Count | None = Field(None, description="worker processes that share a model (default: this process alone)")
    stable_reinforce: str | None = Field(None, description="the loss that stands in for Tinker's stable_reinforce")
    models_in_memory: Count = Field(8, description="models in training that stay in memory; the idlest go to the disk")
    idle_seconds: Seconds = Field(1800, description="seconds without a request after which a model goes to the disk")
    session_seconds: Seconds = Field(1800, description="seconds without a heartbeat after which a session has ended")
    result_seconds: Seconds = Field(3600, description="seconds that a result is kept when nobody fetches it")
    fetched_seconds: Seconds = Field(
        300, description="seconds that a fetched result is kept, for a response that got lost"
    )
    gap_seconds: Seconds = Field(60, description="seconds to wait for a request that others of its model come after")
    hold_seconds: Seconds = Field(30, description="seconds that a poll is held at most; the SDK gives up at 45")
    engine_seconds: Seconds = Field(
        3600, description="seconds that one turn of the engine may take before it counts as hanging"
    )
    grace_seconds: Seconds = Field(30, description="seconds that running work has to end when the server is stopped")
    limits: Limits = Field(default=Limits(), description="what a request may ask for")

    @property
    def url(self) -> str:
        """The database's URL."""
        return self.database or f"sqlite:///{self.root.expanduser().absolute() / 'serve.sqlite'}"

    def tinker(self, root: Path) -> dict[str, Any]:
        """The settings of the Tinker door, for one owner's folder."""
        names = ("models", "device", "dtype", "base_weights", "tokens_per_micro_batch", "workers", "stable_reinforce")
        return {"root": root, **{name: getattr(self, name) for name in names}}
