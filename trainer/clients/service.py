"""`ServiceClient`: makes clients for models that run in this process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...datums.errors import ModelError
from ..checkpoint.folder import read_checkpoint
from ..checkpoint.state import load_snapshot, saved_model
from ..engine.determinism import prepare_determinism
from ..engine.settings import EngineSettings
from ..head.backends import Backend
from ..head.logprobs import Strategy
from ..model.fused.fuse import FusedLayers
from ..model.load import load_model
from ..model.lora.lora import add_lora
from ..model.model import BaseWeights, LoadedModel
from ..model.snapshot import Snapshot
from ..model.value_head import add_value_head
from ..model.weights.four_bit import check_base_weights
from ..packing.hidden import Batching
from .context import ClientContext
from .reference import ReferenceClient
from .sampling import SamplingClient
from .training import TrainingClient
from .worker import Worker


class ServiceClient:
    """Makes training and sampling clients. All calls of all its clients run one after the other, in submission order.

    device          "cpu", "cuda", ...; by default the first GPU, else the CPU
    dtype           of the model's weights; by default float32 on the CPU and bfloat16 on a GPU. Where all weights are
                    trained they are float32 and dtype is that of products: bfloat16 products, float32 weights and logprobs
    base_weights    "4bit": the linear layers of a decoder's layers are quantized to NF4 by bitsandbytes when a model is loaded,
                    a quarter of the bytes of bfloat16; adapters alone are trained on them (QLoRA, arXiv:2305.14314)
    checkpoint_dir  where `save_state` writes

    The others are those of `EngineSettings`; none but dropout changes a loss or a gradient beyond rounding.
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        base_weights: BaseWeights = "full",
        checkpoint_dir: str | Path = "checkpoints",
        tokens_per_micro_batch: int | None = None,
        batching: Batching | None = None,
        kept_graph_tokens: int | None = None,
        dropout: bool = False,
        checkpoint_layers: bool = False,
        offload_activations: bool = False,
        compile_layers: bool = False,
        fused_layers: FusedLayers = "auto",
        head_strategy: Strategy = "auto",
        head_memory: int | None = None,
        head_backend: Backend = "auto",
        deterministic: bool = False,
    ) -> None:
        settings = EngineSettings(
            tokens_per_micro_batch=tokens_per_micro_batch,
            batching=batching,
            kept_graph_tokens=kept_graph_tokens,
            dropout=dropout,
            checkpoint_layers=checkpoint_layers,
            offload_activations=offload_activations,
            compile_layers=compile_layers,
            fused_layers=fused_layers,
            head_strategy=head_strategy,
            head_memory=head_memory,
            head_backend=head_backend,
            deterministic=deterministic,
        )
        check_base_weights(base_weights)
        if deterministic:
            prepare_determinism(device)
        worker, folder = Worker(deterministic=deterministic), Path(checkpoint_dir)
        self.context = ClientContext(worker, settings, folder, device, dtype, base_weights)
        self._numbers = itertools.count()

    @property
    def settings(self) -> EngineSettings:
        """How its models run."""
        return self.context.settings

    @property
    def checkpoint_dir(self) -> Path:
        """Where `save_state` writes."""
        return self.context.checkpoint_dir

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = False,
        *,
        alpha: float | None = None,
        value_head: bool = False,
        lora_targets: Sequence[str] | None = None,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
    ) -> TrainingClient:
        """Train low-rank adapters on frozen weights.

        base_model     a hub id, a local directory, a .gguf file, "tiny" (a small decoder built in code) or "tiny-encoder"
        seed           of the adapters' initial values
        train_mlp      adapt the MLP, with all experts of a mixture; not its router
        train_attn     adapt the attention and recurrent layers
        train_unembed  adapt the output head too, which costs a gradient of the whole vocabulary
        value_head     add a value head, trained in full, for losses that read `values`
        lora_targets   adapt these layers instead: names or ends or parts of them ("q_proj", "layers.0.mlp"), or patterns with *
        lora_alpha     the adapters' product is scaled by it over the rank; 32 by default. `alpha` is the older word for it
        lora_dropout   of the adapters' inputs in training

        `get_info()` says what is adapted and what was left out. Raises ModelError as `add_lora` does.
        """
        if alpha is not None and lora_alpha is not None:
            raise ModelError("alpha is the older word for lora_alpha: give lora_alpha alone")
        return self._lora_client(
            base_model,
            value_head=value_head,
            rank=rank,
            alpha=alpha if lora_alpha is None else lora_alpha,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
            targets=lora_targets,
            dropout=lora_dropout,
        )

    def create_training_client(
        self, base_model: str, lora_rank: int = 0, *, value_head: bool = False
    ) -> TrainingClient:
        """Train all weights, or with `lora_rank` above 0 (as Fireworks spells it) adapters of that rank.

        value_head: add a value head for losses that read `values`; it starts at zero.
        """
        if lora_rank:
            return self.create_lora_training_client(base_model, rank=lora_rank, value_head=value_head)
        model = self._load(base_model)
        model.train_all_weights()
        if value_head:
            add_value_head(model)
        return TrainingClient(self.context, model, self._name())

    def create_training_client_from_state(
        self, path: str, *, optimizer: bool = False, base_model: str | None = None
    ) -> TrainingClient:
        """A new client with a checkpoint's weights; optimizer=True takes its optimizer and all other state too.

        base_model: the model that it was saved from. It must be given where the model would have to be downloaded: a
        checkpoint does not decide that. Raises CheckpointError as `load_state` does.
        """
        checkpoint = read_checkpoint(Path(path), names=[])
        model = saved_model(
            checkpoint,
            device=self.context.device,
            dtype=self.context.dtype,
            base_model=base_model,
            base_weights=self.context.base_weights,
        )
        client = TrainingClient(self.context, self.context.fused(model), self._name())
        client.load_state(path, optimizer=optimizer).result()
        return client

    def create_training_client_from_state_with_optimizer(
        self, path: str, *, base_model: str | None = None
    ) -> TrainingClient:
        """As `create_training_client_from_state(path, optimizer=True)`."""
        return self.create_training_client_from_state(path, optimizer=True, base_model=base_model)

    def create_sampling_client(self, *, model_path: str | None = None, base_model: str | None = None) -> SamplingClient:
        """Sample from saved weights (`model_path`), or from a base model. Given both, the weights must be of that model.

        A checkpoint of a model that would have to be downloaded needs both.
        """
        snapshot, name = self._snapshot("create_sampling_client", model_path, base_model)
        return SamplingClient(self.context.worker, snapshot, f"{name}/sampler")

    def create_reference_client(
        self, *, model_path: str | None = None, base_model: str | None = None
    ) -> ReferenceClient:
        """Frozen weights for forward passes, such as a teacher's: saved ones (`model_path`), or a base model's."""
        snapshot, name = self._snapshot("create_reference_client", model_path, base_model)
        return ReferenceClient(self.context, snapshot, f"{name}/reference")

    def get_server_capabilities(self) -> dict[str, Any]:
        """The base models that need no download, and the device."""
        return {"supported_models": ["tiny", "tiny-encoder"], "device": self.context.device or "best available"}

    def _lora_client(self, base_model: str, *, value_head: bool, **lora: Any) -> TrainingClient:
        model = add_lora(self._load(base_model), **lora)
        if value_head:
            add_value_head(model)
        return TrainingClient(self.context, model, self._name())

    def _load(self, base_model: str) -> LoadedModel:
        context = self.context
        return context.fused(
            load_model(base_model, device=context.device, dtype=context.dtype, base_weights=context.base_weights)
        )

    def _snapshot(self, caller: str, model_path: str | None, base_model: str | None) -> tuple[Snapshot, str]:
        """Saved weights, or a base model's, in a model of their own; and the name of a client for them."""
        if model_path is not None:
            context = self.context
            snapshot = load_snapshot(
                model_path,
                device=context.device,
                dtype=context.dtype,
                base_model=base_model,
                base_weights=context.base_weights,
            )
            self.context.fused(snapshot.model)
            return snapshot, model_path
        if base_model is None:
            raise ModelError(f"{caller} needs model_path or base_model")
        return Snapshot(self._load(base_model), {}), base_model

    def _name(self) -> str:
        return f"model-{next(self._numbers)}"
