"""`TrainingClient`: a model in training, behind futures."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...datums.display import one_line
from ...datums.errors import LossContractError, ModelError
from ...datums.keywords import explained_class
from ...datums.types import AdamParams, as_adam_params, own_datums
from ...losses.registry import get_loss
from ..checkpoint.places import SAMPLER_WEIGHTS, not_for_samplers
from ..engine.checks import Pooling, check_pooling
from ..responses import ForwardBackwardOutput, ModelInfo, OptimStepResponse, SaveStateResponse
from ..training.model_trainer import ModelTrainer
from ..training.protocol import Frozen, Normalization, Trainer
from .awaitable import AwaitableClient, in_thread, queued
from .context import ClientContext, LossFunction, at_place, check_checkpoint_type, loss_and_top_k, saved, settings_of
from .custom import Output, check_contrastive, custom_loss, projections_only
from .futures import Calls, Future
from .reference import ReferenceClient, beside
from .sampling import SamplingClient

T = TypeVar("T")


@explained_class
class TrainingClient(AwaitableClient):
    """Trains one model. Every call returns a `Future` at once; calls run in the order they were made. A call reads its arguments before it returns: what is changed afterwards changes nothing. A failed call changes nothing
    either: gradients, weights, optimizer and random state are as before. A failure that nobody looked at is raised by the
    next call.
    """

    def __init__(self, context: ClientContext, trainer: Trainer, model_id: str) -> None:
        self._context = context
        self._trainer = trainer
        self._calls = Calls(model_id, context.worker)
        self._weights = secrets.token_hex(8)  # names the weights as they are until a call changes them
        self.model_id = model_id

    def __repr__(self) -> str:
        return one_line(f"<TrainingClient {self.model_id} of {self._trainer.base_model}>")

    def forward(
        self,
        data: Sequence[Any],
        loss_fn: LossFunction = "cross_entropy",
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        pooling: Pooling = "mean",
        top_k: int | None = None,
        teacher: ReferenceClient | None = None,
    ) -> Future[ForwardBackwardOutput]:
        """Outputs at every position and the loss, without gradients: reference logprobs, evaluation.

        `result().loss_fn_outputs[i]["logprobs"]` is in nats and has the shape of datum i's target_tokens. top_k, which may stand
        in loss_fn_config: also `"top_k_indices"` [N, k], the likeliest next tokens at each position, and `"top_k_logprobs"` [N, k].
        teacher: as in `forward_backward`.
        """
        check_pooling(pooling)
        datums, (loss, k) = own_datums(data), loss_and_top_k(loss_fn, loss_fn_config, top_k)

        def run(frozen: Frozen | None) -> ForwardBackwardOutput:
            return replace(self._trainer.forward(datums, loss, pooling, k, frozen), weights=self._weights)

        return self._calls.submit("forward", beside(teacher, self._calls.worker, run))

    def forward_projection(self, data: Sequence[Any]) -> Future[ForwardBackwardOutput]:
        """The projection head's numbers at every position, without gradients, such as a critic's values.

        `result().loss_fn_outputs[i]["projection"]` is [N, P]. Raises ModelError without `projection_head_dim` or `value_head`.
        """
        datums, loss = own_datums(data), custom_loss(projections_only, "projection", ())
        return self._calls.submit("forward_projection", lambda: self._trainer.forward(datums, loss, "mean"))

    def forward_backward(
        self,
        data: Sequence[Any],
        loss_fn: LossFunction,
        loss_fn_config: Mapping[str, Any] | None = None,
        *,
        pooling: Pooling = "mean",
        teacher: ReferenceClient | None = None,
    ) -> Future[ForwardBackwardOutput]:
        """Add the gradient of a registered loss, a `Loss`, a mixture or a function to the accumulated one.

        loss_fn: an id, "module:function", or the loss itself; loss_fn_config overrides its settings. pooling is for losses
        over embeddings. teacher: frozen weights in this process whose whole distribution the loss reads at each position, after
        the same tokens. A datum with `teacher_tokens` has the teacher read these instead; `teacher_positions` [N] says which of
        them belongs to each of its positions (-1: none). Raises at once for an unknown id or setting; through the future for unusable data.
        """
        check_pooling(pooling)
        datums, loss = own_datums(data), get_loss(loss_fn, **settings_of(loss_fn_config)).copied()
        call = beside(
            teacher, self._calls.worker, lambda one: self._trainer.forward_backward(datums, loss, pooling, one)
        )
        return self._calls.submit("forward_backward", call)

    def forward_backward_custom(
        self,
        data: Sequence[Any],
        loss_fn: Callable[..., Any],
        *,
        output: Output = "logprobs",
        pooling: Pooling = "mean",
        precomputed_forward: ForwardBackwardOutput | None = None,
    ) -> Future[ForwardBackwardOutput]:
        """As `forward_backward`, for any Python function, at the same cost: one forward, one backward.

        loss_fn: `fn(data, logprobs_list) -> (scalar tensor, {"name": float})`, where logprobs_list[i] is a float32 CPU
        tensor in the shape of datum i's target_tokens. With output="embedding" it is datum i's pooled embedding [d], with
        "cos_similarity_matrix" the cosines [datums] of it and each datum's, with "projection" the head's numbers [N, P].
        precomputed_forward: a result of `forward` on the same data, whose logprobs the function is then handed; refused once
        the weights have changed. A registered function, a `Loss` or a mixture is taken too, and then says itself what it reads. Parameters that the
        function holds get their gradients as from `loss.backward()`, if the call succeeds.
        """
        check_pooling(pooling)
        datums = own_datums(data)
        loss = custom_loss(loss_fn, output, datums, precomputed_forward)
        made_by = None if precomputed_forward is None else precomputed_forward.weights

        def run() -> ForwardBackwardOutput:
            if made_by not in (None, self._weights):
                raise LossContractError(
                    "precomputed_forward was made by other weights than these: run forward again after a step or a load"
                )
            return self._trainer.forward_backward(datums, loss, pooling)

        return self._calls.submit("forward_backward_custom", run)

    def forward_backward_contrastive(
        self,
        data: Sequence[Any],
        *,
        num_queries: int,
        temperature: float,
        num_extra_negatives: int = 0,
        pooling: Pooling = "last",
    ) -> Future[ForwardBackwardOutput]:
        """Bidirectional InfoNCE over [queries, their documents, extra negatives]; the loss `info_nce`."""
        check_contrastive(len(data), num_queries, num_extra_negatives)
        config = {"temperature": float(temperature), "num_extra_negatives": num_extra_negatives}
        return self.forward_backward(data, "info_nce", config, pooling=pooling)

    def optim_step(
        self, adam_params: AdamParams | Any, grad_accumulation_normalization: Normalization | None = None
    ) -> Future[OptimStepResponse]:
        """One AdamW step on the accumulated gradient, which is then cleared.

        grad_accumulation_normalization: divide the gradient, before clipping, by the number of positions with a non-zero
        weight ("num_loss_tokens") or of datums that have one ("num_sequences"). Refused where an accumulated loss was a
        mean already. Raises OptimizerError or NonFiniteGradientError; then nothing has changed.
        """
        params = as_adam_params(adam_params)
        return self._changing("optim_step", lambda: self._trainer.optim_step(params, grad_accumulation_normalization))

    def discard_gradients(self) -> Future[None]:
        """Clear the gradient that has accumulated since the last step."""
        return self._calls.submit("discard_gradients", self._trainer.discard_gradients)

    def save_state(self, name: str, *, overwrite: bool = False) -> Future[SaveStateResponse]:
        """Save weights, optimizer, accumulated gradients and random state, atomically; `load_state` resumes bit for bit."""
        root = self._context.checkpoint_dir.absolute()  # wherever the process goes before the call runs
        save = self._trainer.save_state
        return self._calls.submit("save_state", lambda: saved(save(root, not_for_samplers(name), overwrite=overwrite)))

    def load_state(self, path: str, *, optimizer: bool = True) -> Future[SaveStateResponse]:
        """Resume from a checkpoint of the same model; optimizer=False takes the weights only and starts a fresh optimizer.

        Raises CheckpointError, having changed nothing, when it is damaged, of another model, or lacks the optimizer.
        """
        load = self._trainer.load_state
        return self._changing("load_state", at_place(path, lambda place: load(place, optimizer=optimizer)))

    def load_state_with_optimizer(self, path: str) -> Future[SaveStateResponse]:
        """As `load_state(path)`."""
        return self.load_state(path)

    def load_adapter(self, adapter_path: str | Path) -> Future[SaveStateResponse]:
        """Take the weights of an adapter folder that peft wrote, of this client's rank and layers; the optimizer starts anew.

        A value head keeps its weights. Raises CheckpointError, having changed nothing, for another adapter, ModelError where all
        weights are trained.
        """
        return self._changing("load_adapter", at_place(adapter_path, self._trainer.load_adapter))

    def save_weights_for_sampler(
        self, name: str, *, overwrite: bool = False, checkpoint_type: str | None = None
    ) -> Future[SaveStateResponse]:
        """Save the weights alone; for a LoRA client also as an adapter folder that peft loads.

        checkpoint_type: as Fireworks has it; "base", which saves them whole, is the only one.
        Into `checkpoint_dir/sampler_weights`, so that a state saved by `save_state` may have the same name.
        """
        check_checkpoint_type(checkpoint_type)
        root = self._context.checkpoint_dir.absolute() / SAMPLER_WEIGHTS
        save = self._trainer.save_weights
        return self._calls.submit("save_weights_for_sampler", lambda: saved(save(root, name, overwrite=overwrite)))

    def save_weights_and_get_sampling_client(self, name: str | None = None) -> SamplingClient:
        """A sampler of the current weights; later training does not change it. They are copied when training moves on."""
        if name is not None:
            self.save_weights_for_sampler(name).result()
        return self.snapshot().result()

    def snapshot(self, first: Callable[[Trainer], object] | None = None) -> Future[SamplingClient]:
        """A sampler of the weights as they are when the call's turn comes. first: a call that is made in that turn before."""
        worker, name = self._context.sampling or self._context.worker, f"{self.model_id}/sampler"

        def take() -> SamplingClient:
            if first is not None:
                first(self._trainer)
            return SamplingClient(worker, self._trainer.sampler(), name)

        return self._calls.submit("snapshot", take)

    def in_turn(self, label: str, call: Callable[[Trainer], T]) -> Future[T]:
        """Queue a call of your own on the model in training, behind this client's earlier calls; `label` names it in messages.

        It runs where they run, and must not wait for this service's clients.
        """
        return self._changing(label, lambda: call(self._trainer))  # for all that is known here, it changes the weights

    def create_sampling_client(self, model_path: str) -> SamplingClient:
        """A sampler of saved weights."""
        known = [self._trainer.base_model]
        frozen = self._context.load(lambda models: models.saved(model_path, known=known))
        return SamplingClient(self._context.worker, frozen, f"{model_path}/sampler")

    def create_reference_client(self) -> ReferenceClient:
        """The current weights, frozen, for `forward` only. They are copied when training moves on."""
        frozen = self._calls.submit("snapshot", self._trainer.frozen).result()
        return ReferenceClient(self._context.worker, frozen, f"{self.model_id}/reference")

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self._trainer.tokenizer

    def get_info(self) -> ModelInfo:
        """The model that this client trains, and how."""
        return self._trainer.info(self.model_id)

    def how_it_runs(self) -> Future[str]:
        """How sequences run and samples are decoded, and why not in a better way, in one line; tries what was not tried yet."""
        return self._calls.submit("how_it_runs", self._trainer.how_it_runs)

    def export_adapter(self, directory: str | Path) -> Future[SaveStateResponse]:
        """Write the LoRA adapter, and a value head, into a folder that `peft.PeftModel.from_pretrained` loads."""
        return self._calls.submit("export_adapter", at_place(directory, self._trainer.export_adapter))

    def export_model(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> Future[SaveStateResponse]:
        """Write the whole model, adapters merged, as a folder that transformers loads; weights in `dtype` or their own."""
        export = self._trainer.export_model
        return self._calls.submit("export_model", at_place(directory, lambda folder: export(folder, dtype=dtype)))

    forward_async = queued(forward)
    forward_projection_async = queued(forward_projection)
    forward_backward_async = queued(forward_backward)
    forward_backward_custom_async = queued(forward_backward_custom)
    forward_backward_contrastive_async = queued(forward_backward_contrastive)
    optim_step_async = queued(optim_step)
    discard_gradients_async = queued(discard_gradients)
    save_state_async = queued(save_state)
    load_state_async = queued(load_state)
    load_state_with_optimizer_async = queued(load_state_with_optimizer)
    load_adapter_async = queued(load_adapter)
    save_weights_for_sampler_async = queued(save_weights_for_sampler)
    save_weights_and_get_sampling_client_async = in_thread(save_weights_and_get_sampling_client)
    snapshot_async = queued(snapshot)
    in_turn_async = queued(in_turn)
    create_sampling_client_async = in_thread(create_sampling_client)
    create_reference_client_async = in_thread(create_reference_client)
    get_info_async = in_thread(get_info)
    how_it_runs_async = queued(how_it_runs)
    export_adapter_async = queued(export_adapter)
    export_model_async = queued(export_model)

    def _changing(self, label: str, call: Callable[[], T]) -> Future[T]:
        """Queue a call that changes the weights."""

        def run() -> T:
            result = call()
            self._weights = secrets.token_hex(8)
            return result

        return self._calls.submit(label, run)

    @property
    def local(self) -> ModelTrainer:
        """The model itself with its engine and optimizer, for debugging. Raises ModelError where it lives on workers."""
        if not isinstance(self._trainer, ModelTrainer):
            raise ModelError(f"{self.model_id} is trained on workers: its parts are not in this process")
        return self._trainer
