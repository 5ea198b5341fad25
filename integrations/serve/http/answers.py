"""What is sent back: JSON without bare NaN, refusals in one line, promises, and what a future holds in the end."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from ..operations import JSON, Answer
from ..refusals import Refused


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that every client reads: what is no finite number is null, since JSON has no NaN."""
    return Response(json_text(content), status, dict(headers or {}), JSON)


def json_text(content: Any) -> str:
    """One line of JSON; numbers that are not finite become null."""
    try:
        return json.dumps(content, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False)


def refusal(refused: Refused) -> Response:
    """The status of a refusal, and its one line."""
    headers = {} if refused.retry_after is None else {"retry-after": str(refused.retry_after)}
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_response({"detail": refused.message}, refused.status, headers)


def promise(request_id: str, model_id: str | None = None, **more: Any) -> Response:
    """What a client asks for the result with, later."""
    return json_response({"request_id": request_id, **({} if model_id is None else {"model_id": model_id}), **more})


def outcome(answer: Answer) -> Response:
    """A future's result, or why it has none: HTTP 200 both, since the SDK retries every other status."""
    if answer.error is None:
        return Response(answer.body, 200, media_type=answer.content_type)
    return failed(answer.error, answer.category or "server")


def failed(message: str, category: str) -> Response:
    """A future that failed."""
    return json_response({"error": message, "category": category})


def new_incident() -> str:
    """An id under which the log says what happened, for messages that must not."""
    return secrets.token_hex(6)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_finite(one) for one in value]
    return value
