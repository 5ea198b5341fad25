"""`SamplingClient`: samples from a model's weights, and logprobs of given tokens, with Tinker's calls."""

from __future__ import annotations

import base64
import uuid
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...datums.errors import CheckpointError, ConfigError, DtypeError, ModelError
from ...trainer import responses
from ...trainer.checkpoint.manifest import read_record
from ...trainer.clients import sampling as lossbook
from ...trainer.clients.awaitable import queued
from ...trainer.training.protocol import Frozen
from .futures import APIFuture, CallFuture
from .losses import check_stand_in
from .process import ClientFuture, Session, answered, making
from .settings import current
from .store.records import Stored
from .store.store import Store
from .types import ModelInput, SampledSequence, SampleResponse, SamplingParams, TensorData, TopkLogprobs
from .types.sampling import EMPTY_LOGPROB

#: How checkpoints of pickled samplers are called, and for how many seconds they stay on the disk: a week.
_HANDED_OVER, _HANDED_OVER_FOR = "handed-over", 7 * 24 * 3600


@dataclass
class Weights:
    """What a sampler samples from.

    base_model   the name of the model that it is, or that was trained
    client       lossbook's; "inflight" samplers of one training client share one object, whose client is replaced
    model_path   the checkpoint that it was loaded from, or saved to; None where it is in memory alone
    run_id       the run whose weights these were at one moment, where they are in memory alone
    """

    base_model: str
    client: lossbook.SamplingClient
    model_path: str | None = None
    run_id: str | None = None

    def path(self, store: Store) -> str | None:
        """The checkpoint to load them from; it is written where there is none. None for a base model."""
        if self.model_path is None and self.run_id is not None:
            run_id, name, client = self.run_id, f"{_HANDED_OVER}-{uuid.uuid4().hex}", self.client

            def save(frozen: Frozen) -> None:
                with store.saving(run_id, "sampler_weights", name, ttl_seconds=_HANDED_OVER_FOR) as place:
                    frozen.save_weights(place.parent, place.name, overwrite=False)

            client.in_turn("get_sampler_handle", save).result()
            self.model_path = store.path_of(run_id, "sampler_weights", name)
        return self.model_path


def load_weights(session: Session, model_path: str | None, base_model: str | None) -> Weights:
    """The weights of a checkpoint, or of a base model. Raises CheckpointError and ModelError as lossbook's service does."""
    given = None if base_model is None else session.settings.model(base_model)
    if model_path is None:
        if base_model is None:
            raise ModelError("create_sampling_client needs model_path or base_model")
        key = given or ""
        if (weights := _bases.get(key)) is None:  # one copy in memory for all samplers of it
            weights = Weights(base_model, session.service.create_sampling_client(base_model=given))
        return _bases.setdefault(key, weights)
    stored = session.store.locate(model_path)
    if stored.kind == "external_weights":
        raise CheckpointError(
            f"{model_path} was exported for other programs: sample from what save_weights_for_sampler or save_state wrote"
        )
    kept = _kept.get(model_path)
    if kept is not None and base_model in (None, kept.base_model):
        return kept
    client = session.service.create_sampling_client(model_path=str(stored.folder), base_model=given)
    name = base_model_of(stored) if base_model is None else base_model
    return Weights(name, client, model_path if stored.run is not None else str(stored.folder))


def kept_weights(weights: Weights) -> Weights:
    """The same, to be sampled from in place of loading its checkpoint, for as long as it lives."""
    _kept[str(weights.model_path)] = weights
    return weights


def base_model_of(stored: Stored) -> str:
    """The name of the model that a checkpoint was trained from, as whoever trained it wrote it."""
    return str(read_record(stored.folder).manifest["base_model"]) if stored.run is None else stored.run.base_model


class SamplingClient:
    """Samples from fixed weights, and gives logprobs of given tokens.

    `sample` calls that wait in a row with equal parameters run as one batch; each has the result that it has alone. A call that
    fails fails alone. Logprobs are nats; those of sampled tokens are of the distribution at the sampling temperature, before
    top_k and top_p cut it.

    It can be pickled: in the same process it finds its weights again, in another it loads them. Weights that were never saved
    are saved for that, and kept for a week.
    """

    def __init__(self, session: Session, weights: Weights, sampler_id: str | None = None) -> None:
        self._session = session
        self.weights = weights
        self.sampler_id = sampler_id or session.store.sessions.new_sampler(
            session.id, base_model=weights.base_model, model_path=weights.model_path
        )
        _live[self.sampler_id] = weights

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[SampleResponse]:
        """`num_samples` continuations of one prompt of N tokens.

        topk_prompt_logprobs    the k likeliest tokens at each prompt position
        topk_sample_logprobs    the same at each sampled position
        target_prompt_logprobs  [N - 1, K] int64: token ids whose logprobs are wanted, row i at prompt position i + 1; -1 for none
        prompt_alt_tokens_k     refused: `topk_prompt_logprobs` gives the likeliest tokens in place of drawn ones
        prompt_logprobs_last_n  prompt logprobs of the last n tokens only, from 1 to N - 1
        """
        _check_last_n(prompt_logprobs_last_n, include_prompt_logprobs)
        if prompt_alt_tokens_k:
            raise ModelError(
                "prompt_alt_tokens_k: no tokens are drawn at prompt positions here; topk_prompt_logprobs=k gives the k likeliest"
            )
        call = self.weights.client.sample(
            as_text(prompt, "the prompt"),
            num_samples,
            sampling_params,
            include_prompt_logprobs=include_prompt_logprobs,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
            target_prompt_logprobs=target_prompt_logprobs,
            prompt_logprobs_last_n=prompt_logprobs_last_n,
            scaled_logprobs=True,
        )
        return CallFuture(call, _response)

    def compute_logprobs(
        self, prompt: ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """The logprob of each prompt token given those before it (nats); None for the first, and for those that were not asked for.

        prompt_logprobs_last_n: of the last n tokens only, from 1 to one less than the prompt has.
        """
        _check_last_n(prompt_logprobs_last_n, True)
        call = self.weights.client.compute_logprobs(as_text(prompt, "the prompt"), prompt_logprobs_last_n)
        return CallFuture(call, lambda logprobs: logprobs)

    def get_tokenizer(self) -> Any:
        """The model's transformers tokenizer."""
        return self.weights.client.get_tokenizer()

    def get_base_model(self) -> str:
        """The name of the model that was trained, or that is sampled from as it is."""
        return self.weights.base_model

    def get_telemetry(self) -> None:
        """None: nothing is reported to anybody."""

    def on_queue_state_change(self, queue_state: Any, queue_state_reason: str | None) -> None:
        """Nothing to do: the queue of one process is never paused."""

    def get_sampler_handle(self) -> str:
        """A text from which `from_sampler_handle` makes a client of the same sampler, in any process of this machine."""
        handle = Handle(
            root=str(self._session.store.root),
            session_id=self._session.id,
            sampler_id=self.sampler_id,
            base_model=self.weights.base_model,
            model_path=self.weights.path(self._session.store),
        )
        return base64.urlsafe_b64encode(handle.model_dump_json().encode()).decode()

    @staticmethod
    def from_sampler_handle(handle: str, *, api_key: str | None = None) -> SamplingClient:
        """A client of the sampler that a handle names. Nobody asks for a key here.

        Raises ConfigError for a text that is no handle, CheckpointError where the weights are not on the disk any more.
        """
        try:
            sampler = Handle.model_validate_json(base64.urlsafe_b64decode(handle))
        except ValueError as error:
            raise ConfigError(f"this is no handle of a sampler, such as get_sampler_handle() gives: {error}") from None
        session = Session(sampler.session_id, Store(sampler.root), current())
        weights = _live.get(sampler.sampler_id)
        if weights is None:
            weights = load_weights(session, sampler.model_path, sampler.base_model)
        return SamplingClient(session, weights, sampler.sampler_id)

    sample_async = answered(sample)
    compute_logprobs_async = answered(compute_logprobs)
    get_base_model_async = queued(get_base_model)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return SamplingClient.from_sampler_handle, (self.get_sampler_handle(),)


class BackcompatSamplingClientFuture(ClientFuture[SamplingClient], SamplingClient):
    """A sampling client that may not be there yet, and the future of it."""


def sampler_of(
    session: Session, model_path: str | None, base_model: str | None, record_stability_info: bool
) -> BackcompatSamplingClientFuture:
    """A sampler of saved weights, or of a base model.

    record_stability_info: recorded for `stable_reinforce`, so it is refused where nothing stands in for that loss.
    """
    if record_stability_info:
        check_stand_in(session.settings.stable_reinforce)

    def made() -> SamplingClient:
        return SamplingClient(session, load_weights(session, model_path, base_model))

    return BackcompatSamplingClientFuture(making("create_sampling_client", made))


class Handle(BaseModel):
    """What a sampler's handle says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    root: str
    session_id: str
    sampler_id: str
    base_model: str
    model_path: str | None


#: The weights of the samplers of this process, by the samplers' ids; of checkpoints that are in memory too, by their paths; and
#: of base models, by what was loaded.
_live: weakref.WeakValueDictionary[str, Weights] = weakref.WeakValueDictionary()
_kept: weakref.WeakValueDictionary[str, Weights] = weakref.WeakValueDictionary()
_bases: weakref.WeakValueDictionary[str, Weights] = weakref.WeakValueDictionary()


def as_text(model_input: Any, where: str) -> Any:
    """The same input. Raises DtypeError, naming the place, for chunks that hold no text."""
    for i, chunk in enumerate(getattr(model_input, "chunks", ())):
        if not hasattr(chunk, "tokens"):
            raise DtypeError(
                f"{where}: chunk {i} of {len(model_input.chunks)} is a {type(chunk).__name__}, and models here read text only. Give "
                "EncodedTextChunk: a caption or a transcript of it"
            )
    return model_input


def _check_last_n(count: int | None, asked: bool) -> None:
    if count is not None and count < 1:
        raise ModelError(f"prompt_logprobs_last_n must be 1 or more, not {count}")
    if count is not None and not asked:
        raise ModelError(
            "prompt_logprobs_last_n says which prompt logprobs are wanted: give include_prompt_logprobs=True with it"
        )


def _response(response: responses.SampleResponse) -> SampleResponse:
    prompt = response.prompt_logprobs
    return SampleResponse(
        [_sequence(sequence) for sequence in response.sequences],
        prompt_logprobs_np=None if prompt is None else np.array(prompt, dtype=np.float32),
        topk_prompt_logprobs_np=_top(response.topk_prompt_logprobs),
        target_prompt_logprobs=response.target_prompt_logprobs,
    )


def _sequence(sequence: responses.SampledSequence) -> SampledSequence:
    return SampledSequence(
        sequence.stop_reason,
        sequence.sequence_id,
        tokens_np=np.array(sequence.tokens, dtype=np.int32),
        logprobs_np=np.array(sequence.logprobs, dtype=np.float32),
        topk_logprobs_np=_top(sequence.topk_logprobs),
    )


def _top(top: responses.TopLogprobs | None) -> TopkLogprobs | None:
    """In Tinker's form, which has token 0 and a finite number where nothing was computed."""
    if top is None:
        return None
    computed = top.logprobs > -np.inf
    return TopkLogprobs(
        np.where(computed, top.tokens, 0).astype(np.int32),
        np.where(computed, top.logprobs, EMPTY_LOGPROB).astype(np.float32),
    )
