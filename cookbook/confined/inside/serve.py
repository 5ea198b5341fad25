"""The confined process that a run starts, asks over its standard input, and ends.

It reads and writes a line of JSON for each request. What it calls itself gets trusted arguments only; a model's text goes to
a worker, in a process of its own (`worker.py`).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from .walls import readable_folders
from .worker import Limits, Scorer, Worker


def main() -> None:
    """Serve until standard input ends. What libraries print goes nowhere."""
    requests, replies = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    start = json.loads(requests.readline())
    sys.path += [path for path in start["folders"] if path not in sys.path]
    try:
        scorer = _scorer(start["kind"], start["options"])
        memory = start["memory"] + _address_space()
        server = Server(scorer, Limits(readable_folders(start["folders"]), memory, start["answers"]), requests)
        _write(replies, {"value": server.missing()})
    except BaseException as error:  # SystemExit in a user's module too
        _write(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    for line in requests:
        _write(replies, server.reply(json.loads(line)))


def _scorer(kind: str, options: Mapping[str, Any]) -> Scorer:
    if kind == "gym":
        from .gym import Gym

        return Gym()
    if kind == "mathematics":
        from .mathematics import Mathematics

        return Mathematics()
    from .function import Function

    return Function(**options)


class Server:
    """Answers requests; has one worker at a time."""

    def __init__(self, scorer: Scorer, limits: Limits, requests: TextIO) -> None:
        self.scorer = scorer
        self.limits = limits
        self.requests = requests
        self.worker: Worker | None = None

    def missing(self) -> list[str]:
        """The walls that this system does not have."""
        return self._working(0.0).missing

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        """{"value": ...} of a call, or what `Worker.score` returns; {"error": ..., "is_call": true} where the scorer raises."""
        try:
            if "call" in request:
                self._end_worker()  # which does not have what this loads
                return {"value": self.scorer.call(request["call"])}
            if self.scorer.prepare(request["what"]):
                self._end_worker()
            worker = self._working(request["seconds"])
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "is_call": True}
        reply = worker.score(request["what"], request["answer"], request["seconds"])
        if request["last"] or "failure" in reply or worker.answers >= self.limits.answers:
            self._end_worker()
        return reply

    def _working(self, seconds: float) -> Worker:
        if self.worker is not None and self.worker.seconds < seconds:
            self._end_worker()
        if self.worker is None:
            self.worker = Worker(self.scorer, self.limits, seconds, self.requests.fileno())
        return self.worker

    def _end_worker(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None


def _address_space() -> int:
    """Bytes that this process has mapped; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _write(replies: TextIO, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
