"""Exported weights, by addresses that need no key: they are signed, and end after an hour."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from ...refusals import Refused
from ..answers import json_response
from ..context import context_of, owner_of
from ..documented import REFUSALS
from ..entrance.guard import DOWNLOADS
from ..stored import Id

router = APIRouter(tags=["downloads"], responses=REFUSALS)
#: Seconds that an address holds. It also ends when the server is started anew.
HOLDS = 3600
_SECRET = secrets.token_bytes(32)
_EXTERNAL = "/api/v1/training_runs/{run_id}/checkpoints/external_weights/{name}/external_weights_urls"


@router.get(_EXTERNAL)
async def external_weights_urls(request: Request, run_id: Id, name: Id) -> Response:
    """An address for each file of exported weights."""
    files = await _files(request, owner_of(request), run_id, name)
    expires = int(time.time()) + HOLDS
    base = f"{request.url.scheme}://{request.headers['host']}{DOWNLOADS}"
    urls = {}
    for file in files:
        place = (owner_of(request), run_id, name, file)
        signature = _signature(*place, str(expires))
        urls[file] = f"{base}{'/'.join(quote(part, safe='') for part in place)}?expires={expires}&signature={signature}"
    return json_response({"urls": urls, "expires": datetime.fromtimestamp(expires, UTC).isoformat()})


@router.get(f"{DOWNLOADS}{{owner}}/{{run_id}}/{{name}}/{{file:path}}")
async def download(
    request: Request, owner: Id, run_id: Id, name: Id, file: str, expires: int = 0, signature: str = ""
) -> Response:
    """A file of exported weights."""
    given = signature.encode("utf-8", "replace")
    if not hmac.compare_digest(_signature(owner, run_id, name, file, str(expires)).encode(), given):
        raise Refused(
            404, "this address is not one that the server gave, or it was started anew since: ask for another"
        )
    if expires < time.time():
        raise Refused(404, "this address has ended: ask for another")
    files = await _files(request, owner, run_id, name)
    if file not in files:
        raise Refused(404, "the file is not there any more")
    return FileResponse(files[file], media_type="application/octet-stream", filename=Path(file).name)


async def _files(request: Request, owner: str, run_id: str, name: str) -> dict[str, Path]:
    path = f"tinker://{run_id}/external_weights/{name}"
    answer = await context_of(request).desk.rest(owner, lambda client: client.get_external_weights_urls(path))
    return {file: Path(unquote(urlsplit(url).path)) for file, url in answer.urls.items()}


def _signature(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hmac.new(_SECRET, text, hashlib.sha256).hexdigest()
