"""`TrainingClient`: a model in training, with Tinker's calls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ...datums.errors import EmptyLossError, LossContractError, ModelError, OptimizerError
from ...losses.loss.loss import LossLike
from ...trainer import responses
from ...trainer.checkpoint.folder import check_name
from ...trainer.clients import training as lossbook
from ...trainer.clients.awaitable import queued
from ...trainer.training.protocol import Trainer
from .custom_loss import PerDatumLoss
from .futures import APIFuture, CallFuture
from .losses import check_inputs, check_stand_in, loss_of
from .process import ClientFuture, Session, answered
from .sampling import BackcompatSamplingClientFuture, SamplingClient, Weights, as_text, kept_weights, sampler_of
from .store.names import Kind, run_folder
from .types import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    GetInfoResponse,
    LoadWeightsResponse,
    LossFnType,
    OptimParams,
    OptimStepResponse,
    SamplingClientKind,
    SaveWeightsExternalResponse,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
)
from .types.training import Metrics

#: fn(data, logprobs_list) -> (scalar tensor, {"name": float}).
CustomLoss = Callable[[list[Datum], list[Tensor]], tuple[Tensor, dict[str, float]]]
Config = Mapping[str, float | str]


class TrainingClient:
    """Trains one model. Every call returns an `APIFuture` at once; calls run in the order in which they were made.

    A failed call changes nothing. Those that were queued behind it do not run and fail too, saying so: a step must not follow a
    failed `forward_backward`. Calls made after somebody looked at the failure run as usual.
    """

    def __init__(self, session: Session, client: lossbook.TrainingClient, info: GetInfoResponse) -> None:
        self.model_id = info.model_id
        self._session = session
        self.client = client
        self._info = info
        self._base_model = str(info.model_data.model_name)
        self._inflight: Weights | None = None
        self._latest: Weights | None = None

    def forward(
        self, data: list[Datum], loss_fn: LossFnType | str, loss_fn_config: Config | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        """Logprobs and the loss, without gradients; arguments as `forward_backward` has them."""
        loss, datums = self._loss(loss_fn, loss_fn_config, data), self._texts(data)
        return CallFuture(self.client.forward(datums, loss), _output)

    def forward_backward(
        self, data: list[Datum], loss_fn: LossFnType | str, loss_fn_config: Config | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        """Add a loss's gradient to the accumulated one.

        loss_fn         one of Tinker's ids, which is its sum over tokens, or the id of any other loss that lossbook has
        loss_fn_config  its settings

        `loss_fn_outputs[i]["logprobs"]` is in nats and has the shape of datum i's target_tokens.
        """
        loss, datums = self._loss(loss_fn, loss_fn_config, data), self._texts(data)
        return CallFuture(self.client.forward_backward(datums, loss), _output)

    def forward_backward_custom(
        self,
        data: list[Datum],
        loss_fn: CustomLoss | PerDatumLoss,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[ForwardBackwardOutput]:
        """The same for a function `fn(data, logprobs_list) -> (scalar, metrics)`, or a handle of `create_custom_loss`.

        One forward and one backward: there is no second pass, so no `surrogate_loss:sum`. The function gets the datums that
        were given here, and logprobs of all their positions, whatever their weights.
        """
        if loss_type_input not in (None, "logprobs"):
            raise LossContractError(f"loss_type_input={loss_type_input!r}: a loss gets logprobs, and nothing else")
        if isinstance(loss_fn, PerDatumLoss):
            loss_fn.check(data, self._session.id)
        given, datums = list(data), self._texts(data)

        def loss(data: list[Any], logprobs_list: list[Tensor]) -> Any:
            return loss_fn(given, logprobs_list)

        loss.__name__ = getattr(loss_fn, "__name__", "") or getattr(loss_fn, "name", "custom")
        return CallFuture(self.client.forward_backward_custom(datums, loss), _output)

    def optim_step(
        self, optim_params: OptimParams | None = None, *, adam_params: AdamParams | None = None
    ) -> APIFuture[OptimStepResponse]:
        """One AdamW step on the accumulated gradient, which is then cleared. adam_params: the older word for optim_params."""
        if optim_params is not None and adam_params is not None:
            raise OptimizerError("give optim_params or adam_params, which is its older word, not both")
        params = adam_params if optim_params is None else optim_params
        if params is None:
            raise LossContractError("optim_step needs AdamParams(learning_rate=...)")
        if (kind := getattr(params, "type", "adamw")) != "adamw":
            raise OptimizerError(f"the optimizer {kind!r} is not here: give AdamParams, which is AdamW")
        return CallFuture(self.client.optim_step(params), _stepped)

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[SaveWeightsResponse]:
        """Save weights, optimizer and random state under a name.

        ttl_seconds: from an hour to ten years, after which it is gone. overwrite: replace one of this name, with its metadata.
        """

        def write(trainer: Trainer, place: Path) -> None:
            trainer.save_state(place.parent, place.name, overwrite=False)

        options: dict[str, Any] = {"ttl_seconds": ttl_seconds, "overwrite": overwrite, "user_metadata": user_metadata}
        path, save = self._saving("weights", name, write, options)
        return CallFuture(self.client.in_turn("save_state", save), lambda _: SaveWeightsResponse(path=path))

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None, user_metadata: dict[str, str] | None = None
    ) -> APIFuture[SaveWeightsForSamplerResponse]:
        """Save the weights alone, for `create_sampling_client`. Their names are apart from those of `save_state`.

        The latest ones stay in memory too, so that a sampler of them needs no second copy of the base model.
        """

        def write(trainer: Trainer, place: Path) -> None:
            trainer.save_weights(place.parent, place.name, overwrite=False)

        options: dict[str, Any] = {"ttl_seconds": ttl_seconds, "user_metadata": user_metadata}
        path, save = self._saving("sampler_weights", name, write, options)

        def saved(client: Any) -> SaveWeightsForSamplerResponse:
            self._latest = kept_weights(Weights(self._base_model, client, path))
            return SaveWeightsForSamplerResponse(path=path)

        return CallFuture(self.client.snapshot(save), saved)

    def save_weights_external(
        self, name: str, ttl_seconds: int | None = None, age_encryption_recipients: list[str] | None = None
    ) -> APIFuture[SaveWeightsExternalResponse]:
        """Save the adapter as a folder that peft loads. age_encryption_recipients: refused, files are not encrypted here."""
        if age_encryption_recipients:
            raise ModelError(
                "age_encryption_recipients: nothing is encrypted here; run `age` on the folder that this call writes"
            )
        options = {"ttl_seconds": ttl_seconds}
        path, save = self._saving("external_weights", name, lambda trainer, to: trainer.export_adapter(to), options)
        return CallFuture(
            self.client.in_turn("save_weights_external", save), lambda _: SaveWeightsExternalResponse(path=path)
        )

    def load_state(self, path: str, weights_access_token: str | None = None) -> APIFuture[LoadWeightsResponse]:
        """Take the weights of a `save_state` checkpoint; the optimizer begins anew. No token is needed: it is a folder here."""
        return self._loaded("load_state", path, optimizer=False)

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[LoadWeightsResponse]:
        """The same with the optimizer and all other state."""
        return self._loaded("load_state_with_optimizer", path, optimizer=True)

    def create_sampling_client(
        self, model_path: str, retry_config: Any = None, record_stability_info: bool = False
    ) -> BackcompatSamplingClientFuture:
        """A sampler of saved weights. retry_config has no effect: nothing fails here that would not fail again."""
        return sampler_of(self._session, model_path, None, record_stability_info)

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
        kind: SamplingClientKind = "snapshot",
    ) -> BackcompatSamplingClientFuture:
        """A sampler of the weights as they are when the call's turn comes; nothing is written to the disk.

        kind: "snapshot", or "inflight": a sampler that goes over to the weights of each later call of this kind. `name` has no
        effect, as in Tinker.
        """
        if name is not None:
            warnings.warn(
                "save_weights_and_get_sampling_client(name=...) has no effect: save_weights_for_sampler(name) keeps weights",
                DeprecationWarning,
                stacklevel=2,
            )
        if kind not in ("snapshot", "inflight"):
            raise ModelError(f"kind is 'snapshot' or 'inflight', not {kind!r}")
        if record_stability_info:
            check_stand_in(self._session.settings.stable_reinforce)

        def made(client: Any) -> SamplingClient:
            weights = Weights(self._base_model, client, run_id=self.model_id)
            return SamplingClient(self._session, self._published(weights) if kind == "inflight" else weights)

        return BackcompatSamplingClientFuture(CallFuture(self.client.snapshot(), made))

    def get_info(self) -> GetInfoResponse:
        """The model, by the name that was asked for, and how it is trained."""
        return self._info

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.client.get_tokenizer()

    def get_console_url(self) -> str:
        """The address of the folder in which the run's checkpoints lie: there is no console."""
        return (self._session.store.root / "runs" / run_folder(self.model_id)).as_uri()

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    forward_async = queued(forward)
    forward_backward_async = queued(forward_backward)
    forward_backward_custom_async = queued(forward_backward_custom)
    optim_step_async = queued(optim_step)
    save_state_async = queued(save_state)
    save_weights_for_sampler_async = queued(save_weights_for_sampler)
    save_weights_external_async = queued(save_weights_external)
    load_state_async = queued(load_state)
    load_state_with_optimizer_async = queued(load_state_with_optimizer)
    create_sampling_client_async = answered(create_sampling_client)
    save_weights_and_get_sampling_client_async = answered(save_weights_and_get_sampling_client)
    get_info_async = queued(get_info)

    def _loss(self, name: Any, config: Config | None, data: Sequence[Datum]) -> LossLike:
        loss = loss_of(name, config, self._session.settings.stable_reinforce)
        check_inputs(name, data)
        return loss

    def _texts(self, data: Sequence[Datum]) -> list[Datum]:
        self._session.store.note_use(self.model_id)
        if not data:
            raise EmptyLossError("there are no datums")
        for i, datum in enumerate(data):
            as_text(datum.model_input, f"datum {i} of {len(data)}")
        return list(data)

    def _saving(
        self, kind: Kind, name: str, write: Callable[[Trainer, Path], None], options: Mapping[str, Any]
    ) -> tuple[str, Callable[[Trainer], None]]:
        """A checkpoint's path, and the call that writes it with its record."""
        store, run_id = self._session.store, self.model_id

        def save(trainer: Trainer) -> None:
            with store.saving(run_id, kind, name, **options) as place:
                write(trainer, place)
            store.note_use(run_id)

        return store.path_of(run_id, kind, check_name(name)), save

    def _loaded(self, label: str, path: str, *, optimizer: bool) -> APIFuture[LoadWeightsResponse]:
        store = self._session.store

        def load(trainer: Trainer) -> None:
            trainer.load_state(store.locate(path, kind="weights").folder, optimizer=optimizer)

        answer = LoadWeightsResponse(path=path, model_id=self.model_id)
        return CallFuture(self.client.in_turn(label, load), lambda _: answer)

    def _published(self, weights: Weights) -> Weights:
        """The weights that all inflight samplers share, these now."""
        if self._inflight is None:
            self._inflight = weights
        self._inflight.client, self._inflight.model_path = weights.client, None
        return self._inflight


class BackcompatTrainingClientFuture(ClientFuture[TrainingClient], TrainingClient):
    """A training client that may not be there yet, and the future of it."""


def _output(output: responses.ForwardBackwardOutput) -> ForwardBackwardOutput:
    metrics = Metrics(output.metrics, {name: stat.kind for name, stat in output.stats.items()})
    return ForwardBackwardOutput(output.loss_fn_output_type, output.loss_fn_outputs, metrics)


def _stepped(response: responses.OptimStepResponse) -> OptimStepResponse:
    return OptimStepResponse(metrics=dict(response.metrics))
