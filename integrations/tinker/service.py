"""`ServiceClient`: makes training and sampling clients, with Tinker's calls."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from ...datums.errors import ModelError, OptimizerError
from ...trainer.clients.awaitable import queued
from .custom_loss import LossHandle, PerDatumLossFn, Rank, traced_loss
from .futures import APIFuture, AwaitableConcurrentFuture, DoneFuture
from .models import begin_run, fresh_model, model_from_state
from .process import Session, answered, making
from .rest import RestClient
from .sampling import BackcompatSamplingClientFuture, sampler_of
from .settings import current
from .store.store import Store
from .training import BackcompatTrainingClientFuture, TrainingClient
from .types import GetServerCapabilitiesResponse, OptimizerConfig

Finish = Literal["success", "errored", "interrupted"]


class ServiceClient:
    """Makes training and sampling clients; all calls of all clients of a process run one after the other.

    user_metadata, project_id, display_name   noted of its session, for `RestClient`; TINKER_PROJECT_ID is the default project
    base_url, api_key, default_headers_overrides   have no effect: no server is asked

    Its session begins with the first client. `close`, or the end of a `with` block, ends it.
    """

    def __init__(
        self,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        *,
        display_name: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        default_headers_overrides: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            warnings.warn(f"ServiceClient ignores {', '.join(sorted(kwargs))}", FutureWarning, stacklevel=2)
        self._noted: dict[str, Any] = {
            "user_metadata": user_metadata,
            "project_id": project_id or os.environ.get("TINKER_PROJECT_ID") or None,
            "display_name": display_name,
        }
        self._session: Session | None = None
        self._losses: set[str] = set()
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("success").result()
        else:
            self.close("errored" if issubclass(kind, Exception) else "interrupted").result()

    # --- training -----------------------------------------------------------------------------------------------------

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> BackcompatTrainingClientFuture:
        """Train low-rank adapters on frozen weights.

        base_model     a name of the setting `models`, a local folder, a .gguf file, a hub id or "tiny"
        seed           of the adapters' initial values
        train_unembed  adapt the output head too
        user_metadata  noted of the run

        Returns the client, which is also the future of it.
        """
        _check_optimizer(optimizer)
        session = self._begun()
        parts: dict[str, Any] = {"train_mlp": train_mlp, "train_attn": train_attn, "train_unembed": train_unembed}

        def made() -> TrainingClient:
            client = fresh_model(session, base_model, {"rank": rank, "seed": seed, **parts})
            return begin_run(session, client, {"base_model": base_model, **parts, "user_metadata": user_metadata})

        return BackcompatTrainingClientFuture(making("create_lora_training_client", made))

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> BackcompatTrainingClientFuture:
        """Go on from the weights of a `save_state` checkpoint; the optimizer begins anew.

        base_model: the model that it was trained from; another is refused. weights_access_token has no effect: it is a folder.
        """
        _check_optimizer(optimizer)
        return self._from_state("create_training_client_from_state", path, base_model, user_metadata, False)

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> BackcompatTrainingClientFuture:
        """Go on from a `save_state` checkpoint as if nothing had happened."""
        name = "create_training_client_from_state_with_optimizer"
        return self._from_state(name, path, base_model, user_metadata, True)

    def create_custom_loss(self, fn: PerDatumLossFn, input_ranks: Mapping[str, Rank]) -> APIFuture[LossHandle]:
        """A handle of a traced loss for `forward_backward_custom`, under the hosted service's rules.

        fn(logprobs, *inputs) -> (scalar, {"custom/<name>:sum" or ":mean": scalar tensor}) is a loss of one datum; those of a
        call are added up. Its parameters after logprobs are loss_fn_inputs keys. input_ranks: 0 for a number, 1 for [T], 2 for
        [T, K], of each parameter. Raises TraceError that says what the service would not take, ModelError for the same loss
        made twice.
        """
        session = self._begun()
        # In turn: torch.fx replaces methods of all modules while it traces, also under a model that runs on another thread.
        handle = session.service.context.in_turn("create_custom_loss", lambda: traced_loss(fn, input_ranks, session.id))
        with self._lock:
            if handle.key in self._losses:
                raise ModelError(f"custom loss {handle.name!r} was made in this session before: keep its handle")
            self._losses.add(handle.key)
        return DoneFuture(handle)

    # --- sampling -----------------------------------------------------------------------------------------------------

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: Any = None,
        record_stability_info: bool = False,
    ) -> BackcompatSamplingClientFuture:
        """Sample from saved weights (`model_path`), or from a base model. Given both, the weights must be of that model.

        retry_config has no effect: nothing fails here that would not fail again. record_stability_info: for `stable_reinforce`
        """
        if model_path is None and base_model is None:
            raise ModelError("create_sampling_client needs model_path or base_model")
        return sampler_of(self._begun(), model_path, base_model, record_stability_info)

    # --- the service itself -------------------------------------------------------------------------------------------

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """The base models that need no download; any other that lossbook loads can be asked for too."""
        return self.create_rest_client().get_server_capabilities().result()

    def create_rest_client(self) -> RestClient:
        """A client for the runs and checkpoints on the disk."""
        self._check_open()
        return RestClient(self._session)

    def copy_weights(
        self, path: str, *, ttl_seconds: int | None = None, weights_access_token: str | None = None
    ) -> APIFuture[str]:
        """Copy a checkpoint into a run of its own, in a new session of this client's project; the future is of the copy's path."""
        return self.create_rest_client().copy_weights(
            path, destination_project_id=self._noted["project_id"], ttl_seconds=ttl_seconds
        )

    def close(self, status: Finish, detail: str | None = None) -> AwaitableConcurrentFuture[None]:
        """End the session; what it did is noted, and this client makes no more clients. The first word counts."""
        with self._lock:
            session, self._closed = (None if self._closed else self._session), True
        if session is not None:
            session.store.sessions.finish(session.id, status, detail)
        return DoneFuture(None)

    def get_console_url(self) -> str:
        """The address of the folder in which runs and checkpoints lie: there is no console."""
        return current().root.as_uri()

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    # --- the same calls by their older names, in asyncio ---------------------------------------------------------------

    create_lora_training_client_async = answered(create_lora_training_client)
    create_training_client_from_state_async = answered(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = answered(create_training_client_from_state_with_optimizer)
    create_sampling_client_async = answered(create_sampling_client)
    get_server_capabilities_async = queued(get_server_capabilities)

    # --- within -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("ServiceClient is closed: make another")

    def _begun(self) -> Session:
        with self._lock:
            self._check_open()
            if self._session is None:
                settings = current()
                store = Store(settings.root)
                self._session = Session(store.new_session(**self._noted), store, settings)
            return self._session

    def _from_state(
        self, label: str, path: str, base_model: str | None, user_metadata: dict[str, str] | None, optimizer: bool
    ) -> BackcompatTrainingClientFuture:
        session = self._begun()

        def made() -> TrainingClient:
            client, facts = model_from_state(session, path, base_model, optimizer=optimizer)
            return begin_run(session, client, {**facts, "user_metadata": user_metadata})

        return BackcompatTrainingClientFuture(making(label, made))


def _check_optimizer(optimizer: OptimizerConfig | None) -> None:
    if (kind := getattr(optimizer, "type", "adamw")) != "adamw":
        raise OptimizerError(f"the optimizer {kind!r} is not here: leave it out for AdamW, whose steps take AdamParams")
