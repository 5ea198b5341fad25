"""`Desk`: takes requests, runs them on models in their order, and keeps the answers. What HTTP says of it is `http/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from ...tinker.futures import APIFuture
from ...tinker.rest import RestClient
from ..operations import Answer, Operation
from ..settings import ServeSettings

T = TypeVar("T")


def sequence_ids(request_id: str, count: int) -> list[str]:
    """The ids of the sequences of a `sample` request, which its submission is answered with."""
    return [f"{request_id}-{i}" for i in range(count)]


class Desk:
    """One per server process, on one event loop. All methods but `__init__` belong to the loop's thread.

    Methods raise Refused for what is answered by a status: 404 for ids that are not there or are another owner's, 429 over a
    limit, 503 while the server stops, where its engine is dead, or its database does not answer. What fails later fails the
    future: `retrieve` gives an Answer with `error`.
    """

    def __init__(self, settings: ServeSettings, ledger: Any) -> None:
        self.settings = settings
        #: Called with each request that has ended, its answer, and the seconds that it ran.
        self.observers: list[Callable[[Operation, Answer, float], None]] = []

    async def start(self) -> None:
        """Settle what a process that died left behind, and begin to run requests."""
        raise NotImplementedError

    async def close(self, grace: float | None = None) -> None:
        """Take nothing more, end what runs within `grace` seconds, fail what waits, and save all models to the disk."""
        raise NotImplementedError

    @property
    def trouble(self) -> str | None:
        """Why no requests run (the engine is dead or hangs, the server stops), in one line; None while all is well."""
        raise NotImplementedError

    # --- sessions -----------------------------------------------------------------------------------------------------

    async def create_session(
        self,
        owner: str,
        *,
        user_metadata: dict[str, str] | None = None,
        project_id: str | None = None,
        display_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Begin a session; returns its id. The same key gives the same session."""
        raise NotImplementedError

    async def heartbeat(self, owner: str, session_id: str) -> None:
        """Keep a session open. Raises Refused(410) for one that has ended, 404 where there is none."""
        raise NotImplementedError

    async def finish(
        self,
        owner: str,
        session_id: str,
        reason: Literal["success", "errored", "interrupted"] = "success",
        detail: str | None = None,
    ) -> None:
        """End a session, with its models and samplers; what is saved stays. The first word counts."""
        raise NotImplementedError

    # --- requests that get a promise ----------------------------------------------------------------------------------

    async def submit(self, operation: Operation) -> str:
        """Take a request; returns its id. A retry, of the same number and body, gives the id that it has.

        operation.payload: what `wire` read; of forward_backward and forward a ForwardBackward, of the others the request's model.
        Raises Refused(400) for the number of another request, Refused(404) for a model, session or sampler that is not there.
        """
        raise NotImplementedError

    async def used_up(self, owner: str, scope: str, counter: str, number: int) -> None:
        """Note that a request of this number was refused, so that those after it do not wait for it."""
        raise NotImplementedError

    async def retrieve(self, owner: str, request_id: str, hold: float) -> Answer | None:
        """The answer, waiting `hold` seconds for it at most; None where it is not there yet. Raises Refused(404)."""
        raise NotImplementedError

    def queue_state(self, request_id: str) -> str:
        """What to say of a request that has no answer yet: "active", or "paused_capacity" where nothing runs."""
        raise NotImplementedError

    # --- what is answered at once -------------------------------------------------------------------------------------

    async def get_info(self, owner: str, model_id: str) -> dict[str, Any]:
        """A model's `get_info` answer."""
        raise NotImplementedError

    async def create_sampling_session(
        self, owner: str, *, session_id: str, number: int, base_model: str | None = None, model_path: str | None = None
    ) -> str:
        """A sampler of saved weights (`model_path`, which wins), or of a base model; returns its id. Idempotent by number."""
        raise NotImplementedError

    async def join_sampling_session(self, owner: str, sampler_id: str) -> int:
        """A number for one more client of a sampler: 1, 2, ..."""
        raise NotImplementedError

    async def sampler(self, owner: str, sampler_id: str) -> dict[str, Any]:
        """`sampler_id`, `base_model` and `model_path` of a sampler."""
        raise NotImplementedError

    async def rest(self, owner: str, call: Callable[[RestClient], APIFuture[T]]) -> T:
        """What an owner's `RestClient` answers: `await desk.rest(owner, lambda client: client.list_user_checkpoints(100, 0))`.

        Raises Refused where the client refuses; what stands in the way is 400, since clients retry 409.
        """
        raise NotImplementedError

    def capabilities(self) -> dict[str, Any]:
        """The `get_server_capabilities` answer: the models that the settings name."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """What the status page shows."""
        raise NotImplementedError
