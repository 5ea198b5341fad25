"""`ServiceClient`: makes clients for models in this process or on workers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from ...datums.display import one_line
from ...datums.errors import ModelError
from ...datums.keywords import explained_class
from ..choices import BaseWeights, FusedLayers
from ..engine.settings import EngineSettings
from ..head.backends import Backend
from ..head.logprobs import Strategy
from ..packing.hidden import Batching
from ..training.local_models import LocalModels
from ..training.protocol import Frozen
from ..workers.launch import WORKER_TIMEOUT, placed
from .awaitable import in_thread
from .context import ClientContext
from .reference import ReferenceClient
from .sampling import SamplingClient
from .training import TrainingClient


class AdapterSettings(TypedDict, total=False):
    """The keywords of `create_lora_training_client` that are about adapters alone."""

    seed: int | None
    train_mlp: bool
    train_attn: bool
    train_unembed: bool
    lora_targets: Sequence[str] | None
    lora_alpha: float | None
    lora_dropout: float


@explained_class
class ServiceClient:
    """Makes training and sampling clients. All calls of all its clients run one after the other, in submission order; with
    `sampling_workers` samples of models in training are drawn beside them.

    device          "cpu", "cuda", ...; by default the first GPU, else the CPU
    dtype           of the model's weights; by default float32 on the CPU and bfloat16 on a GPU. Where all weights are
                    trained they are float32 and dtype is that of products: bfloat16 products, float32 weights and logprobs
    base_weights    "4bit": the linear layers of a decoder's layers are quantized to NF4 by bitsandbytes when a model is loaded,
                    a quarter of the bytes of bfloat16; adapters alone are trained on them (QLoRA, arXiv:2305.14314)
    checkpoint_dir  where `save_state` writes
    workers         how many processes hold each model together, as Ray's actors on this machine or the cluster of `RAY_ADDRESS`, or
                    as torchrun's processes; by default the model lives in this process
    tensor_parallel  how many workers share each matrix of a layer and work on the same micro-batches, of decoders of whose
                    architectures this was tried, all weights in training; it divides the workers and the model's heads
    sampling_workers  how many further processes hold a whole copy of each model in training and sample from it, so that samples
                    are drawn while the workers train; by default the workers sample
    worker_timeout  seconds that a call on workers may take; a worker that dies is noticed at once

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
        workers: int | None = None,
        tensor_parallel: int = 1,
        sampling_workers: int | None = None,
        worker_timeout: float = WORKER_TIMEOUT,
    ) -> None:
        kernels: Any = {"compile_layers": compile_layers, "fused_layers": fused_layers, "deterministic": deterministic}
        head: Any = {"head_strategy": head_strategy, "head_memory": head_memory, "head_backend": head_backend}
        settings = EngineSettings(
            tokens_per_micro_batch=tokens_per_micro_batch,
            batching=batching,
            kept_graph_tokens=kept_graph_tokens,
            dropout=dropout,
            checkpoint_layers=checkpoint_layers,
            offload_activations=offload_activations,
            **kernels,
            **head,
        )
        local = LocalModels(settings, device, dtype, base_weights, tensor_parallel=tensor_parallel)
        models = placed(local, workers, worker_timeout, sampling_workers)
        self.context = ClientContext.of(models, settings, Path(checkpoint_dir), samples_apart=bool(sampling_workers))
        self._device, self._numbers = device, itertools.count()

    def __repr__(self) -> str:
        device = self._device or "the best device"
        return one_line(f"<ServiceClient on {device}, checkpoints in {str(self.checkpoint_dir)!r}>")

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
        projection_head_dim: int | None = None,
        max_context_length: int | None = None,
        masked_lm_head: bool = False,
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
        projection_head_dim  add a head of so many numbers per position, trained in full, for output="projection"; it starts at zero
        max_context_length  the longest sequence in tokens that is trained on or sampled; longer ones are refused
        masked_lm_head  load an encoder with its masked-LM head, which pooling "splade" reads; a decoder has its head anyway
        lora_targets   adapt these layers instead: names or ends or parts of them ("q_proj", "layers.0.mlp"), or patterns with *
        lora_alpha     the adapters' product is scaled by it over the rank; 32 by default. `alpha` is the older word for it
        lora_dropout   of the adapters' inputs in training

        `get_info()` says what is adapted and what was left out. Raises ModelError as `add_lora` does.
        """
        if alpha is not None and lora_alpha is not None:
            raise ModelError("alpha is the older word for lora_alpha: give lora_alpha alone")
        trainer = self.context.load(
            lambda models: models.adapters(
                base_model,
                value_head=_head_numbers(value_head, projection_head_dim),
                max_length=max_context_length,
                masked_lm_head=masked_lm_head,
                rank=rank,
                alpha=alpha if lora_alpha is None else lora_alpha,
                seed=seed,
                train_mlp=train_mlp,
                train_attn=train_attn,
                train_unembed=train_unembed,
                targets=lora_targets,
                dropout=lora_dropout,
            )
        )
        return TrainingClient(self.context, trainer, self._name())

    def create_training_client(
        self,
        base_model: str,
        lora_rank: int = 0,
        *,
        value_head: bool = False,
        projection_head_dim: int | None = None,
        max_context_length: int | None = None,
        masked_lm_head: bool = False,
        **lora: Unpack[AdapterSettings],
    ) -> TrainingClient:
        """Train all weights, or with `lora_rank` above 0 (as Fireworks spells it) adapters of that rank.

        lora: the other keywords of `create_lora_training_client`, for adapters alone; it explains the other parameters too.
        """
        if lora_rank:
            shared: Any = {"projection_head_dim": projection_head_dim, "max_context_length": max_context_length}
            shared |= {"value_head": value_head, "masked_lm_head": masked_lm_head}
            return self.create_lora_training_client(base_model, lora_rank, **shared, **lora)
        if lora:
            raise ModelError(f"{', '.join(lora)}: for adapters alone, and lora_rank is 0, so all weights are trained")
        trainer = self.context.load(
            lambda models: models.all_weights(
                base_model,
                value_head=_head_numbers(value_head, projection_head_dim),
                max_length=max_context_length,
                masked_lm_head=masked_lm_head,
            )
        )
        return TrainingClient(self.context, trainer, self._name())

    def create_training_client_from_state(
        self, path: str, *, optimizer: bool = False, base_model: str | None = None
    ) -> TrainingClient:
        """A new client with a checkpoint's weights; optimizer=True takes its optimizer and all other state too.

        base_model: the model that it was saved from. It must be given where the model would have to be downloaded: a
        checkpoint does not decide that. Raises CheckpointError as `load_state` does.
        """
        trainer = self.context.load(lambda models: models.like(path, base_model=base_model))
        client = TrainingClient(self.context, trainer, self._name())
        client.load_state(path, optimizer=optimizer).result()
        return client

    def create_training_client_from_state_with_optimizer(
        self, path: str, *, base_model: str | None = None
    ) -> TrainingClient:
        """As `create_training_client_from_state(path, optimizer=True)`."""
        return self.create_training_client_from_state(path, optimizer=True, base_model=base_model)

    def create_sampling_client(self, model_path: str | None = None, base_model: str | None = None) -> SamplingClient:
        """Sample from saved weights (`model_path`), or from a base model. Given both, the weights must be of that model.

        A checkpoint of a model that would have to be downloaded needs both.
        """
        frozen, name = self._frozen("create_sampling_client", model_path, base_model)
        return SamplingClient(self.context.worker, frozen, f"{name}/sampler")

    def create_reference_client(
        self,
        base_model: str | None = None,
        *,
        model_path: str | None = None,
        lora_rank: int | None = None,
        policy_client: TrainingClient | None = None,
        masked_lm_head: bool = False,
    ) -> ReferenceClient:
        """Frozen weights for forward passes, such as a teacher's: saved ones (`model_path`), or a base model's.

        policy_client: the base model of the model that this one trains. lora_rank: of the policy, as Fireworks has it: a base
        model is the reference of adapters and of all weights alike, so it is only held against the `policy_client`'s.
        """
        if policy_client is not None:
            base_model = _base_of(policy_client, base_model, lora_rank)
        frozen, name = self._frozen("create_reference_client", model_path, base_model, masked_lm_head)
        return ReferenceClient(self.context.worker, frozen, f"{name}/reference")

    def get_server_capabilities(self) -> dict[str, Any]:
        """The base models that need no download, and the device."""
        return {"supported_models": ["tiny", "tiny-encoder"], "device": self._device or "best available"}

    create_lora_training_client_async = in_thread(create_lora_training_client)
    create_training_client_async = in_thread(create_training_client)
    create_training_client_from_state_async = in_thread(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = in_thread(create_training_client_from_state_with_optimizer)
    create_sampling_client_async = in_thread(create_sampling_client)
    create_reference_client_async = in_thread(create_reference_client)
    get_server_capabilities_async = in_thread(get_server_capabilities)

    def _frozen(
        self, caller: str, model_path: str | None, base_model: str | None, masked_lm_head: bool = False
    ) -> tuple[Frozen, str]:
        """Saved weights, or a base model's, in a model of their own; and the name of a client for them."""
        if model_path is None and base_model is None:
            raise ModelError(f"{caller} needs model_path or base_model")
        if model_path is not None:
            return self.context.load(lambda models: models.saved(model_path, base_model=base_model)), model_path
        assert base_model is not None
        return self.context.load(lambda models: models.base(base_model, masked_lm_head=masked_lm_head)), base_model

    def _name(self) -> str:
        return f"model-{next(self._numbers)}"


def _head_numbers(value_head: bool, projection_head_dim: int | None) -> int:
    """How many numbers a value head gives; 0 for none. Raises ModelError where both words ask for one."""
    if projection_head_dim is None:
        return int(value_head)
    if value_head:
        raise ModelError(
            "a value head is a projection head of one number: give value_head or projection_head_dim, not both"
        )
    if isinstance(projection_head_dim, bool) or not isinstance(projection_head_dim, int) or projection_head_dim < 0:
        raise ModelError(f"projection_head_dim is a number of numbers, or None, not {projection_head_dim!r}")
    return projection_head_dim


def _base_of(policy: TrainingClient, base_model: str | None, lora_rank: int | None) -> str:
    """The base model of the model that a client trains. Raises ModelError where it is another, or of another rank."""
    info = policy.get_info()
    if base_model not in (None, info.model_name):
        raise ModelError(f"the policy_client trains {info.model_name!r}, not {base_model!r}: give one of the two")
    if lora_rank not in (None, info.lora_rank or 0):
        raise ModelError(f"the policy_client has lora_rank {info.lora_rank or 0}, not {lora_rank}")
    return info.model_name
