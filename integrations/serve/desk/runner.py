"""What each kind of request does, on the in-process clients of `integrations/tinker`. One thread runs all of it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...tinker.futures import APIFuture
from ...tinker.losses import check_stand_in
from ...tinker.types import SampleResponse
from ..ledger import Ledger
from ..ledger.records import ModelChanges
from ..operations import PROTOBUF, Answer, Operation
from ..refusals import Failed
from ..settings import ServeSettings
from ..wire.results import forward_backward_bytes, json_bytes, sample_bytes
from .books import Books
from .custom import CustomLosses
from .failures import failed_answer, failure_of, is_of_the_engine
from .losses import check_loss_id, settings_of
from .models import Models
from .owners import Owners
from .samplers import Samplers


@dataclass
class Done:
    """How a request ended. changes: of its model, to be written with the answer. trained, sampled: tokens. loss: `loss:sum`."""

    operation: Operation
    answer: Answer
    failed: Failed | None = None
    changes: ModelChanges = field(default_factory=ModelChanges)
    trained: int = 0
    sampled: int = 0
    loss: float | None = None


def sequence_ids(request_id: str, count: int) -> list[str]:
    """The ids of the sequences of a `sample` request, which its submission is answered with."""
    return [f"{request_id}-{i}" for i in range(count)]


class Runner:
    """Runs requests. `run` belongs to the engine's thread.

    engine_error: why the processes that hold the models are gone, if they are
    """

    def __init__(
        self, settings: ServeSettings, owners: Owners, models: Models, samplers: Samplers, ledger: Ledger, books: Books
    ) -> None:
        self._settings, self._owners, self._models, self._samplers = settings, owners, models, samplers
        self._losses = CustomLosses(settings.limits, ledger, books)
        self.engine_error: str | None = None
        self._calls: Mapping[str, Callable[[Operation], Done]] = {
            "create_model": self._create_model,
            "load_weights": self._load_weights,
            "forward_backward": self._forward_backward,
            "forward": self._forward_backward,
            "optim_step": self._optim_step,
            "save_weights": self._save_weights,
            "save_weights_for_sampler": self._save_weights_for_sampler,
            "save_weights_external": self._save_weights_external,
            "create_custom_loss": self._create_custom_loss,
        }

    def run(self, batch: Sequence[Operation]) -> list[Done]:
        """Run one request, or samples of one sampler together. Never raises: what fails is an answer too."""
        if batch[0].kind == "sample":
            return self._sample(batch)
        return [self._ended(operation, lambda one=operation: self._calls[one.kind](one)) for operation in batch]

    def end(self, session_id: str, *, rescue: bool) -> None:
        """Let go of what lives in a session. rescue: after a checkpoint of what is in none."""
        self._models.end(session_id, rescue=rescue)
        self._samplers.end(session_id)
        self._losses.end(session_id)

    def _ended(self, operation: Operation, call: Callable[[], Done]) -> Done:
        try:
            done = call()
        except BaseException as error:
            if is_of_the_engine(error):
                self.engine_error = "the processes that hold the models have died: restart the server"
            failed = failure_of(error, operation, self._owners.hidden())
            return Done(operation, failed_answer(failed), failed)
        if operation.counter == "seq" and done.changes:
            model = self._models.all.get(operation.scope)
            if model is not None:
                self._models.change(model, **done.changes)
        return done

    # --- models -------------------------------------------------------------------------------------------------------

    def _create_model(self, operation: Operation) -> Done:
        asked = operation.payload
        _check_optimizer(asked.optimizer_config)
        lora = None
        if asked.lora_config is not None:
            lora = asked.lora_config.config().model_dump()
            lora["seed"] = (
                time.time_ns() % 2**31 if lora["seed"] is None else lora["seed"]
            )  # so that it can be made again
        making = {"base_model": asked.base_model, "lora": lora}
        self._models.new(operation, operation.number, making, texts(asked.user_metadata))
        return _json(operation, {"model_id": f"{operation.scope}:train:{operation.number}"})

    def _load_weights(self, operation: Operation) -> Done:
        asked = operation.payload
        _check_optimizer(asked.optimizer_config)
        if operation.counter == "model":
            making = {"path": asked.path, "optimizer": asked.optimizer, "base_model": asked.base_model}
            self._models.new(operation, operation.number, making, texts(asked.user_metadata))
            return _json(operation, {"path": asked.path, "model_id": f"{operation.scope}:train:{operation.number}"})
        client = self._models.use(operation.scope)
        load = client.load_state_with_optimizer if asked.optimizer else client.load_state
        load(asked.path).result()
        changes = ModelChanges(executed_seq=operation.number, dirty=False)
        if asked.optimizer:
            changes |= ModelChanges(durable_seq=operation.number, durable_path=asked.path)
        return _json(operation, {"path": asked.path, "model_id": operation.scope}, changes)

    def _forward_backward(self, operation: Operation) -> Done:
        asked = operation.payload
        if asked.problem is not None:
            raise asked.problem
        client, forward = self._models.use(operation.scope), operation.kind == "forward" or asked.forward_only
        if asked.loss_fn == "custom":
            if forward:
                raise Failed("a custom loss is for forward_backward: give forward a loss by its name", "user")
            if asked.loss_id is None:
                raise Failed(
                    "loss_fn 'custom' needs loss_fn_config={'loss_id': ...}, as create_custom_loss gave it", "user"
                )
            loss = self._losses.get(operation.owner, asked.loss_id, operation.scope.partition(":")[0])
            output = client.forward_backward_custom(asked.data, loss).result()
        else:
            check_loss_id(asked.loss_fn, self._settings.stable_reinforce)
            call = client.forward if forward else client.forward_backward
            output = call(asked.data, asked.loss_fn, settings_of(asked.loss_fn, asked.config)).result()
        changes = ModelChanges() if forward else ModelChanges(executed_seq=operation.number, dirty=True)
        answer, loss = Answer(forward_backward_bytes(output), PROTOBUF), output.metrics.get("loss:sum", math.nan)
        tokens = sum(one.model_input.length for one in asked.data)
        return Done(operation, answer, changes=changes, trained=tokens, loss=loss if math.isfinite(loss) else None)

    def _optim_step(self, operation: Operation) -> Done:
        client = self._models.use(operation.scope)
        metrics = client.optim_step(operation.payload.params()).result().metrics
        self._models.all[operation.scope].steps += 1
        changes = ModelChanges(executed_seq=operation.number, dirty=False)
        return _json(operation, {"metrics": metrics}, changes)

    def _save_weights(self, operation: Operation) -> Done:
        asked, client = operation.payload, self._models.use(operation.scope)
        name = asked.path or f"{operation.number:06d}"
        path = client.save_state(name, asked.ttl_seconds, asked.overwrite, asked.user_metadata).result().path
        changes = ModelChanges(
            durable_seq=operation.number,
            durable_path=path,
            checkpoint=path,
            checkpoint_seq=operation.number,
            dirty=False,  # gradients that no step has used are in it too
        )
        return _json(operation, {"path": path}, changes)

    def _save_weights_for_sampler(self, operation: Operation) -> Done:
        asked, client = operation.payload, self._models.use(operation.scope)
        if asked.path is not None:
            saved = client.save_weights_for_sampler(asked.path, asked.ttl_seconds, asked.user_metadata).result()
            return _json(operation, {"path": saved.path})
        made = client.save_weights_and_get_sampling_client(kind=asked.kind).result()
        self._samplers.of_model(operation.owner, operation.scope, made, follows=asked.kind == "inflight")
        return _json(operation, {"sampling_session_id": made.sampler_id})

    def _save_weights_external(self, operation: Operation) -> Done:
        asked, client = operation.payload, self._models.use(operation.scope)
        saved = client.save_weights_external(asked.path, asked.ttl_seconds, asked.age_encryption_recipients).result()
        record = self._owners.of(operation.owner).store.locate(saved.path).record
        return _json(operation, {"path": saved.path, "size_bytes": None if record is None else record.size_bytes})

    # --- samples ------------------------------------------------------------------------------------------------------

    def _sample(self, batch: Sequence[Operation]) -> list[Done]:
        """Samples of one sampler: handed over together, so that they are decoded together, and each fails alone."""
        calls: list[tuple[Operation, Callable[[], Done]]] = []
        for operation in batch:
            try:
                call = self._submitted(operation)
            except BaseException as error:
                calls.append((operation, lambda error=error: _raise(error)))
            else:
                calls.append((operation, lambda one=operation, call=call: _sampled(one, call.result())))
        return [self._ended(operation, call) for operation, call in calls]

    def _submitted(self, operation: Operation) -> APIFuture[SampleResponse]:
        asked, client = operation.payload, self._samplers.use(operation.scope)
        if asked.record_stability_info:
            check_stand_in(self._settings.stable_reinforce)
        return client.sample(asked.model_input(), **asked.keywords(self._settings.limits))

    # --- custom losses ------------------------------------------------------------------------------------------------

    def _create_custom_loss(self, operation: Operation) -> Done:
        return _json(operation, {"loss_id": self._losses.make(operation)})


def _check_optimizer(config: Any) -> None:
    if config is not None and config.type != "adamw":
        raise Failed(f"the optimizer {config.type!r} is not here: leave it out for AdamW", "user")


def texts(metadata: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Metadata as texts, which is what is kept: other values as JSON."""
    if metadata is None:
        return None
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


def _json(operation: Operation, fields: dict[str, Any], changes: ModelChanges | None = None) -> Done:
    answer = Answer(json_bytes({**fields, "type": operation.kind}))
    return Done(operation, answer, changes=ModelChanges() if changes is None else changes)


def _sampled(operation: Operation, response: SampleResponse) -> Done:
    ids = sequence_ids(operation.request_id, len(response.sequences))
    tokens = sum(len(sequence.tokens) for sequence in response.sequences)
    return Done(operation, Answer(sample_bytes(response, ids), PROTOBUF), sampled=tokens)


def _raise(error: BaseException) -> Done:
    raise error
