"""Connections over a real socket: floods of headers, headers that do not come, what is no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from lossbook.integrations.serve.http.app import create_app
from lossbook.integrations.serve.http.server import uvicorn_config
from lossbook.integrations.serve.settings import Limits, ServeSettings

from .fake import FakeDesk


@asynccontextmanager
async def listening(**limits: float) -> AsyncIterator[int]:
    """The port of a server in this loop."""
    settings = ServeSettings(port=0, limits=Limits(**limits))
    server = uvicorn.Server(uvicorn_config(create_app(settings, FakeDesk(settings)), settings))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.config.port = 0
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await server.shutdown()


async def said(port: int, data: bytes, more: bytes = b"") -> bytes:
    """What the server answers to these bytes before it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if more:
        await asyncio.sleep(0.05)
        writer.write(more)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(GET + b"\r\n", b"200", id="a request"),
        pytest.param(GET + b"x: " + b"y" * 200_000 + b"\r\n\r\n", b"431", id="a header of 200 KB"),
        pytest.param(GET + b"".join(b"x%d: y\r\n" % i for i in range(500)) + b"\r\n", b"431", id="500 headers"),
        pytest.param(b"\x16\x03\x01\x02\x00\r\n\r\n", b"400", id="TLS"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", b"400", id="two hosts"),
        pytest.param(GET + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", b"400", id="two lengths"),
        pytest.param(
            GET + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", None, id="two framings"
        ),
    ],
)
def test_what_is_sent_is_answered_by_its_status(data: bytes, status: bytes | None) -> None:
    async def run() -> bytes:
        async with listening(header_seconds=30) as port:
            return await said(port, data)

    answer = asyncio.run(run())
    assert answer.startswith(b"HTTP/1.1 ")
    assert status is None or answer.split()[1] == status


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"GET /healthz HT", id="half a line"),
        pytest.param(GET, id="headers without their end"),
        pytest.param(
            b"POST /api/v1/telemetry HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\n{", id="half a body"
        ),
    ],
)
def test_what_does_not_come_in_time_is_answered_by_408(data: bytes) -> None:
    async def run() -> bytes:
        async with listening(header_seconds=0.2) as port:
            return await said(port, data)

    assert asyncio.run(run()).split()[1] == b"408"


def test_a_second_request_of_a_connection_has_the_time_limit_too() -> None:
    async def run() -> bytes:
        async with listening(header_seconds=1) as port:
            first = GET.replace(b"connection: close\r\n", b"") + b"\r\n"
            return await said(port, first, more=b"GET /healthz HT")

    statuses = [part.split()[0] for part in asyncio.run(run()).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"408"]
