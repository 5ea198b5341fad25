"""From a request's bytes to a request that was read, and to an operation that the desk has taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from ..operations import JSON, Operation, OperationKind
from ..refusals import Refused
from ..wire.body import canonical_hash, read_body, read_json
from ..wire.fields import Request as WireRequest
from ..wire.fields import parsed
from .context import body_of, context_of, owner_of, read

W = TypeVar("W", bound=WireRequest)


@dataclass(frozen=True)
class Given(Generic[W]):
    """A request of JSON that was read: its fields as they came, and as the server understands them."""

    fields: dict[str, Any]
    request: W


async def given(request: Request, model: type[W]) -> Given[W]:
    """Read a request of JSON. Raises Refused, after its number was noted as used up where it had one."""
    limits = context_of(request).settings.limits
    raw = await body_of(request, JSON)

    def reader() -> Given[W]:
        fields = read_json(read_body(raw, request.headers.get("content-encoding"), limits), limits)
        return Given(fields, parsed(model, fields, limits))

    try:
        return await read(raw, reader)
    except Refused as refused:
        await note_used(request, refused)
        raise


async def note_used(request: Request, refused: Refused) -> None:
    """Tell the desk which number a refused request had, so that those after it do not wait for it."""
    if refused.used is not None:
        scope, counter, number = refused.used
        await context_of(request).desk.used_up(owner_of(request), scope, counter, number)


async def submit(request: Request, kind: OperationKind, given: Given[Any]) -> str:
    """Hand a request of JSON to the desk; returns the id to ask for its result with."""
    scope, counter, number = _numbered(given.request)
    operation = Operation(
        owner=owner_of(request),
        kind=kind,
        scope=scope,
        number=number,
        counter=counter,
        body_hash=canonical_hash(kind, given.fields),
        payload=given.request,
    )
    return await context_of(request).submit(operation)


def _numbered(request: WireRequest) -> tuple[str, Any, int]:
    for scope, number, counter in type(request).NUMBERED:
        values = getattr(request, scope), getattr(request, number)
        if None not in values:
            return values[0], counter, values[1]
    raise Refused(422, "the request says neither whose it is nor which number it has")
