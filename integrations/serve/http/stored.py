"""What lies on the disk, as an owner's `RestClient` tells of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from ...tinker.futures import APIFuture
from ...tinker.rest import RestClient
from .answers import json_response
from .context import context_of, owner_of

T = TypeVar("T")
Id = Annotated[str, Path(max_length=256)]
Limit = Annotated[int, Query(ge=1, le=10_000)]
Offset = Annotated[int, Query(ge=0, lt=2**31)]
#: Fields of answers that say whose a thing is: the owner of the request, not the account that runs the server.
_OWNERS = ("model_owner", "owner")


async def rest(request: Request, call: Callable[[RestClient], APIFuture[T]]) -> T:
    """What the caller's own runs, checkpoints and sessions answer."""
    return await context_of(request).desk.rest(owner_of(request), call)


def described(request: Request, answer: BaseModel) -> Response:
    """An answer of `rest` as JSON."""
    return json_response(_owned(answer.model_dump(mode="json", exclude_none=True), f"lossbook:{owner_of(request)}"))


def _owned(value: Any, owner: str) -> Any:
    if isinstance(value, dict):
        return {
            key: owner if key in _OWNERS else one if key == "user_metadata" else _owned(one, owner)
            for key, one in value.items()
        }
    return [_owned(one, owner) for one in value] if isinstance(value, list) else value
