"""Many clients that wait at a server: how its memory, and answers to others, fare meanwhile.

    python benchmarks/serve_pollers.py                       # 1,000 clients for 60 s
    python benchmarks/serve_pollers.py --clients 100 --seconds 10
    python benchmarks/serve_pollers.py --quick

`lossbook serve` runs as a process of its own on loopback, with the tiny model. Each client has a connection of its own and polls
`retrieve_future` for a request that does not end; the server holds each poll `--hold-seconds` (30 by default in the server, shorter
here, so that more of them end and come again). Meanwhile another connection asks for the health and beats a session's heart, ten
times a second. Reported: polls a second, the server's memory before, with all clients there, at its most and in the end, when they
have gone, and the longest answers. The aim: memory with all clients there grows by less than 5 % over the time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measuring

_COMMAND = "from lossbook.cookbook.cli import command; command()"
MIB = 2**20


class Connection:
    """One connection of HTTP/1.1 that stays open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of a request."""
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
        told = await self.reader.readexactly(length)
        return int(lines[0].split()[1]), json.loads(told) if told else None

    async def post(self, path: str, **body: Any) -> Any:
        """The JSON of a POST below /api/v1/ that is answered by 200."""
        status, told = await self.ask("POST", f"/api/v1/{path}", body)
        if status != 200:
            raise RuntimeError(f"{path}: {status} {told}")
        return told

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Seen:
    """What was seen meanwhile. rss: bytes of the server's memory by second."""

    polls: int = 0
    statuses: set[int] = field(default_factory=set)
    short: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


async def waiting_request(port: int) -> tuple[str, str]:
    """A session, and the id of a request that does not end: the one before it never comes."""
    client = await Connection.to(port)
    session = (await client.post("create_session", tags=[], sdk_version="0.38.0"))["session_id"]
    model = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 2}}
    made = (await client.post("create_model", **model))["request_id"]
    while (await client.ask("POST", "/api/v1/retrieve_future", {"request_id": made}))[0] == 408:
        pass
    step = await client.post("optim_step", model_id=f"{session}:train:0", seq_id=2, adam_params={})
    await client.close()
    return session, step["request_id"]


async def poll(port: int, clients: int, seconds: float, pid: int) -> Seen:
    """Let so many clients poll for so long."""
    session, request_id = await waiting_request(port)
    seen, until = Seen(), time.monotonic() + seconds
    connections: list[Connection] = []
    for _ in range(clients):
        connections.append(await Connection.to(port))

    async def client(connection: Connection) -> None:
        while time.monotonic() < until:
            status, _ = await connection.ask("POST", "/api/v1/retrieve_future", {"request_id": request_id})
            seen.polls += 1
            seen.statuses.add(status)

    async def other() -> None:
        connection = await Connection.to(port)
        while time.monotonic() < until:
            for method, path, body in (
                ("GET", "/healthz", None),
                ("POST", "/api/v1/session_heartbeat", {"session_id": session}),
            ):
                begun = time.monotonic()
                status, _ = await connection.ask(method, path, body)
                seen.short.append(time.monotonic() - begun)
                seen.statuses.add(status)
            await asyncio.sleep(0.1)
        await connection.close()

    async def watch() -> None:
        while time.monotonic() < until:
            await asyncio.sleep(1)
            seen.rss.append(resident(pid))

    await asyncio.gather(other(), watch(), *(client(one) for one in connections))
    for one in connections:
        await one.close()
    return seen


@contextlib.asynccontextmanager
async def serving(folder: Path, hold: float) -> AsyncIterator[tuple[int, int]]:
    """The port and the process id of a server."""
    flags = ["--root", str(folder), "--device", "cpu", "--port", "0", "--gap-seconds", "100000"]
    command = [sys.executable, "-c", _COMMAND, "serve", *flags, "--hold-seconds", str(hold)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    assert process.stdout is not None
    try:
        address = re.compile(r"TINKER_BASE_URL=\S+:(\d+)")
        found = next(filter(None, map(address.search, process.stdout)), None)
        if found is None:
            raise RuntimeError(f"the server did not start: {(folder / 'log').read_text()[-2000:]}")
        yield int(found.group(1)), process.pid
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


async def run(clients: int, seconds: float, hold: float) -> dict[str, Any]:
    """One row."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder), hold) as (port, pid):
            await poll(
                port, 10, min(2.0, seconds), pid
            )  # what is loaded at the first request is not the clients' doing
            before = resident(pid)
            begun = time.monotonic()
            seen = await poll(port, clients, seconds, pid)
            took = time.monotonic() - begun
            await asyncio.sleep(2)
            after = resident(pid)
    early = statistics.median(seen.rss[len(seen.rss) // 6 : max(len(seen.rss) // 3, len(seen.rss) // 6 + 1)])
    late = statistics.median(seen.rss[-max(len(seen.rss) // 6, 1) :])
    short = sorted(seen.short)
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "hold s": hold,
        "polls": seen.polls,
        "polls / s": seen.polls / took,
        "statuses": " ".join(map(str, sorted(seen.statuses))),
        "MiB before": before / MIB,
        "MiB early": early / MIB,
        "MiB late": late / MIB,
        "MiB most": max(seen.rss) / MIB,
        "MiB after": after / MIB,
        "growth": late / early,
        "short ms, median": 1e3 * statistics.median(short),
        "short ms, 99 %": 1e3 * short[int(0.99 * (len(short) - 1))],
        "short ms, longest": 1e3 * short[-1],
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print the table, write it; returns its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--hold-seconds", type=float, default=5, help="how long the server holds a poll")
    parser.add_argument("--quick", action="store_true", help="50 clients for 3 seconds")
    parser.add_argument("--out", type=Path, help="folder for the results")
    options = parser.parse_args(arguments)
    if options.quick:
        options.clients, options.seconds, options.hold_seconds = 50, 3, 1
    rows = [asyncio.run(run(options.clients, options.seconds, options.hold_seconds))]
    print(measuring.markdown(rows))
    measuring.write("serve_pollers", rows, measuring.folder_for(options.out, quick=options.quick))
    return rows


if __name__ == "__main__":
    main()
