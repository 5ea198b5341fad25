"""How the server says no: by a status at once, or by a future that fails."""

from __future__ import annotations

from typing import Literal

#: Whose mistake it was, in the words of Tinker's protocol.
Category = Literal["user", "server"]
#: Which of a client's counters a number is of: of a model's requests, a session's models or losses, a sampler's samples.
Counter = Literal["seq", "model", "loss", "sample"]


class Refused(Exception):
    """A request that is not taken, answered at once by an HTTP status.

    The SDK retries 408, 409, 429 and 5xx for minutes, so those are for what may pass: 429 and 503, with `retry_after` seconds.
    What stays wrong is 400, 401, 404, 413, 415 or 422. `message` is one line for whoever wrote the client, without paths, keys
    and tracebacks. `used` is the (scope, counter, number) of a refused operation, where it was read: the client's next request
    has the number after it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        retry_after: int | None = None,
        used: tuple[str, Counter, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.retry_after, self.used = status, message, retry_after, used


class Failed(Exception):
    """A request that was taken and whose future fails: HTTP 200 with `{"error": message, "category": category}`."""

    def __init__(self, message: str, category: Category) -> None:
        super().__init__(message)
        self.message: str = message
        self.category: Category = category
