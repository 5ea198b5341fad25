"""Tinker's exceptions, and which of them a failure of lossbook becomes.

A call that fails when its turn comes raises `RequestFailedError` from its future, with lossbook's message and lossbook's
error as `__cause__`; its `category` says whose mistake it was. What the hosted service would refuse by an HTTP status, such
as a name that is not there, is a `refusal` of that status. What is wrong with the arguments themselves is raised at the
call, by lossbook's own classes, which are also the builtin that a reader would catch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from ...datums.errors import LossbookError, SamplerError, WorkerDiedError, WorkerError
from .types.service import RequestErrorCategory

if TYPE_CHECKING:
    import httpx2 as httpx

E = TypeVar("E", bound="APIStatusError")

#: Where the requests of errors say that they went.
_ADDRESS = "http://lossbook.invalid"
#: Errors of lossbook that no change of the call mends.
_NOT_THE_CALLERS = (SamplerError, WorkerDiedError, WorkerError)


class TinkerError(Exception):
    """Base of all errors of this API."""


class APIError(TinkerError):
    """A request that failed. `body` is what the service answered, None without an answer."""

    def __init__(self, message: str, request: httpx.Request, *, body: object | None) -> None:
        super().__init__(message)
        self.message = message
        self.request = request
        self.body = body


class APIResponseValidationError(APIError):
    """An answer that is not of the expected form."""

    def __init__(self, response: httpx.Response, body: object | None, message: str | None = None) -> None:
        super().__init__(message or "The answer is not of the expected form.", response.request, body=body)
        self.response = response
        self.status_code = response.status_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.response, self.body, self.message)


class APIStatusError(APIError):
    """A request that the service refused, by its HTTP status."""

    status_code: int

    def __init__(self, message: str, response: httpx.Response, body: object | None) -> None:
        super().__init__(message, response.request, body=body)
        self.response = response
        self.status_code = response.status_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.response, self.body)


class APIConnectionError(APIError):
    """The service was not reached. In one process it always is."""

    def __init__(self, request: httpx.Request, message: str = "Connection error.") -> None:
        super().__init__(message, request, body=None)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.request, self.message)


class APITimeoutError(APIConnectionError):
    """The service did not answer in time."""

    def __init__(self, request: httpx.Request) -> None:
        super().__init__(request=request, message="Request timed out.")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.request,)


class BadRequestError(APIStatusError):
    """400: the request cannot be carried out."""

    status_code: int = 400


class AuthenticationError(APIStatusError):
    """401: the key is missing or wrong. In one process there is none."""

    status_code: int = 401


class BillingError(APIStatusError):
    """402: something is wrong with the account."""

    status_code: int = 402


class PermissionDeniedError(APIStatusError):
    """403: the caller may not."""

    status_code: int = 403


class NotFoundError(APIStatusError):
    """404: nothing of that name is there."""

    status_code: int = 404


class ConflictError(APIStatusError):
    """409: something else stands in the way."""

    status_code: int = 409


class UnprocessableEntityError(APIStatusError):
    """422: the request is well-formed, but makes no sense."""

    status_code: int = 422


class RateLimitError(APIStatusError):
    """429: too many requests."""

    status_code: int = 429


class InternalServerError(APIStatusError):
    """5xx: the service failed."""

    status_code: int = 500


class RequestFailedError(TinkerError):
    """A call that failed when its turn came. `category` says whose mistake it was."""

    def __init__(self, message: str, request_id: str, category: RequestErrorCategory) -> None:
        super().__init__(message)
        self.message = message
        self.request_id = request_id
        self.category = category

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.request_id, self.category)


class ExperimentalWarning(FutureWarning):
    """A call that Tinker may change in any release."""


def refusal(kind: type[E], message: str, cause: BaseException | None = None) -> E:
    """An error of this kind to raise, with a request and a response made for it; `cause` becomes its `__cause__`."""
    import httpx2 as httpx  # the SDK has httpx, which nothing here needs

    response = httpx.Response(kind.status_code, request=httpx.Request("POST", _ADDRESS))
    error = kind(message, response, {"error": message})
    error.__cause__ = cause
    return error


def as_tinker_error(error: BaseException, call: str) -> BaseException:
    """What a failed call's future raises.

    An error of lossbook or of the machine becomes a RequestFailedError, of `category` user or server; `call` names the
    call. Any other stays itself: a bug, Ctrl-C, or what a caller's own loss function raised.
    """
    if isinstance(error, LossbookError):
        category = RequestErrorCategory.Server if isinstance(error, _NOT_THE_CALLERS) else RequestErrorCategory.User
    elif isinstance(error, OSError | MemoryError) or type(error).__name__ == "OutOfMemoryError":
        category = RequestErrorCategory.Server
    else:
        return error
    message = " ".join([str(error), *getattr(error, "__notes__", [])])  # a note says behind which failed call it waited
    failed = RequestFailedError(message, call, category)
    failed.__cause__ = error
    return failed
