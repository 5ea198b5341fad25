"""Training runs and their checkpoints, as they lie on the disk."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from starlette.requests import Request
from starlette.responses import Response

from ....tinker.store.names import SCHEME
from ...refusals import Refused
from ...wire.fields import Request as WireRequest
from ...wire.fields import Seconds, Text
from ...wire.requests import SetTtl, WeightsInfo
from ..answers import json_response
from ..context import context_of
from ..documented import REFUSALS, json_body
from ..stored import Id, Limit, Offset, described, rest
from ..submitted import given

router = APIRouter(prefix="/api/v1", tags=["runs and checkpoints"], responses=REFUSALS)
Kind = Literal["weights", "sampler_weights", "external_weights"]
Name = Annotated[str, Path(max_length=128)]
_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"


class CopyWeights(WireRequest):
    """`copy_weights`."""

    source_path: Text
    destination_project_id: Text | None = None
    session_id: Text | None = None
    model_seq_id: int | None = None
    ttl_seconds: Seconds | None = None


@router.get("/training_runs")
async def list_training_runs(
    request: Request, limit: Limit = 20, offset: Offset = 0, project_id: str | None = None
) -> Response:
    """Runs, the latest request first; of one project if it is given."""
    runs = await rest(request, lambda client: client.list_training_runs(limit, offset, project_id=project_id))
    return described(request, runs)


@router.get("/training_runs/{run_id}")
async def get_training_run(request: Request, run_id: Id) -> Response:
    """A run, with its last checkpoint of each kind."""
    return described(request, await rest(request, lambda client: client.get_training_run(run_id)))


@router.get("/training_runs/{run_id}/checkpoints")
async def list_checkpoints(request: Request, run_id: Id) -> Response:
    """The checkpoints of a run, newest first."""
    return described(request, await rest(request, lambda client: client.list_checkpoints(run_id)))


@router.get("/checkpoints")
async def list_user_checkpoints(request: Request, limit: Limit = 100, offset: Offset = 0) -> Response:
    """The checkpoints of all runs, newest first."""
    return described(request, await rest(request, lambda client: client.list_user_checkpoints(limit, offset)))


@router.delete(_CHECKPOINT, status_code=204)
async def delete_checkpoint(request: Request, run_id: Id, kind: Kind, name: Name) -> Response:
    """Remove a checkpoint from the disk."""
    await rest(request, lambda client: client.delete_checkpoint(run_id, f"{kind}/{name}"))
    return Response(status_code=204)


@router.put(f"{_CHECKPOINT}/ttl", status_code=204, openapi_extra=json_body(SetTtl))
async def set_ttl(request: Request, run_id: Id, kind: Kind, name: Name) -> Response:
    """Let a checkpoint's life end so many seconds from now, or never."""
    seconds = (await given(request, SetTtl)).request.ttl_seconds
    path = _path(run_id, kind, name)
    await rest(request, lambda client: client.set_checkpoint_ttl_from_tinker_path(path, seconds))
    return Response(status_code=204)


@router.post(f"{_CHECKPOINT}/publish", status_code=204)
async def publish(request: Request, run_id: Id, kind: Kind, name: Name) -> Response:
    """Mark a checkpoint as public. The mark alone changes: other keys still do not see it."""
    path = _path(run_id, kind, name)
    await rest(request, lambda client: client.publish_checkpoint_from_tinker_path(path))
    return Response(status_code=204)


@router.delete(f"{_CHECKPOINT}/publish", status_code=204)
async def unpublish(request: Request, run_id: Id, kind: Kind, name: Name) -> Response:
    """Take the mark off again."""
    path = _path(run_id, kind, name)
    await rest(request, lambda client: client.unpublish_checkpoint_from_tinker_path(path))
    return Response(status_code=204)


@router.post("/weights_info", openapi_extra=json_body(WeightsInfo))
async def weights_info(request: Request) -> Response:
    """What a model must be like to load a checkpoint."""
    path = (await given(request, WeightsInfo)).request.tinker_path
    _check_path(path)
    return described(request, await rest(request, lambda client: client.get_weights_info_by_tinker_path(path)))


@router.post("/copy_weights", openapi_extra=json_body(CopyWeights))
async def copy_weights(request: Request) -> Response:
    """Copy a checkpoint into a run of its own, in a project."""
    asked = (await given(request, CopyWeights)).request
    context_of(request).check_open()
    _check_path(asked.source_path)
    if asked.destination_project_id is None:
        raise Refused(400, "copy_weights needs destination_project_id here: a copy is a run of its own")
    copied = await rest(
        request,
        lambda client: client.copy_weights(
            asked.source_path, asked.destination_project_id, ttl_seconds=asked.ttl_seconds
        ),
    )
    return json_response({"tinker_path": copied})


def _path(run_id: str, kind: str, name: str) -> str:
    return f"tinker://{run_id}/{kind}/{name}"


def _check_path(path: str) -> None:
    """Raise Refused for a path of this machine's disk: clients name checkpoints, not files."""
    if not path.startswith(SCHEME) or len(path.removeprefix(SCHEME).split("/")) != 3:
        raise Refused(400, f"{path[:100]!a} is no tinker:// path of a run, a kind and a name")
