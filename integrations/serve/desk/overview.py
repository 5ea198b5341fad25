"""What the server says about itself: counts, rates, loss curves and the latest errors."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections import deque
from dataclasses import dataclass, field

import torch

from ....datums.errors import ModelError
from ..operations import Operation
from ..refusals import Failed
from ..settings import ServeSettings
from ..status import (
    MAX_ERRORS,
    MAX_POINTS,
    RATE_SECONDS,
    LossCurve,
    Memory,
    ModelState,
    ModelStatus,
    RecentError,
    SamplerStatus,
    ServerState,
    Status,
    Throughput,
)
from .models import Model, Models
from .runner import Done
from .samplers import Sampler, Samplers
from .scheduler import Scheduler

_STATES: dict[str, ModelState] = {"memory": "in memory", "parked": "parked", "lost": "lost", "ended": "failed"}


@dataclass
class _Ended:
    """One request that ended."""

    time: float
    scope: str
    trained: int
    sampled: int
    is_sample: bool


@dataclass
class _Curve:
    """Losses of one model under one loss function. latest: those since the last step."""

    points: deque[tuple[int, float | None]] = field(default_factory=lambda: deque(maxlen=MAX_POINTS))
    latest: float | None = None
    is_new: bool = False


class Overview:
    """Notes what ends, and sums it up."""

    def __init__(self, settings: ServeSettings, models: Models, samplers: Samplers, scheduler: Scheduler) -> None:
        self._settings, self._models, self._samplers, self._scheduler = settings, models, samplers, scheduler
        self._started = time.time()
        self._ended: deque[_Ended] = deque(maxlen=100_000)
        self._curves: dict[str, dict[str, _Curve]] = {}
        self._errors: deque[tuple[str, RecentError]] = deque(maxlen=MAX_ERRORS * 8)

    def ended(self, done: Done) -> None:
        """Note a request that ran."""
        operation = done.operation
        self._ended.append(_Ended(time.time(), operation.scope, done.trained, done.sampled, operation.kind == "sample"))
        curves = self._curves.setdefault(operation.scope, {}) if operation.counter == "seq" else {}
        if operation.kind == "forward_backward" and done.failed is None:
            curve = curves.setdefault(str(operation.payload.loss_fn), _Curve())
            curve.latest, curve.is_new = done.loss, True
        if operation.kind == "optim_step" and done.failed is None:
            model = self._models.all.get(operation.scope)
            for curve in curves.values():
                if curve.is_new:
                    curve.points.append((0 if model is None else model.steps, curve.latest))
                    curve.is_new = False
        if done.failed is not None:
            self.failed(operation, done.failed)

    def failed(self, operation: Operation, failed: Failed) -> None:
        """Note a request that failed, or will not run."""
        error = RecentError(
            time=time.time(),
            where=operation.scope,
            kind=operation.kind,
            category=failed.category,
            message=failed.message,
        )
        self._errors.append((operation.owner, error))

    def forget(self, scopes: list[str]) -> None:
        """Drop the curves of models that have ended."""
        for scope in scopes:
            self._curves.pop(scope, None)

    def status(self, owner: str | None, state: ServerState, *, sessions: int, unfetched: int) -> Status:
        """All of it, as one owner sees it; None sees everything."""
        now, queue = time.time(), self._scheduler.queue
        running = self._scheduler.running
        recent = [one for one in self._ended if one.time > now - RATE_SECONDS]
        models = [one for one in self._models.all.values() if owner in (None, one.record.owner)]
        samplers = [one for one in self._samplers.all.values() if owner in (None, one.record.owner)]
        return Status(
            version=importlib.metadata.version("lossbook"),
            state=state,
            time=now,
            started=self._started,
            device=self._settings.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            sessions=sessions,
            queues={
                "waiting": len(queue) if owner is None else queue.waiting(owner),
                "running": sum(owner in (None, one.owner) for one in running),
                "unfetched": unfetched,
            },
            throughput=_throughput(recent),
            memory=_memory(),
            models=[self._model(one, recent) for one in models],
            samplers=[self._sampler(one, recent) for one in samplers],
            errors=[error for of, error in reversed(self._errors) if owner in (None, of)][:MAX_ERRORS],
        )

    def _model(self, model: Model, recent: list[_Ended]) -> ModelStatus:
        scope = model.record.model_id
        kinds = [one.kind for one in self._scheduler.running if one.scope == scope]
        curves = self._curves.get(scope, {})
        return ModelStatus(
            model_id=scope,
            base_model=str(model.info.model_name),
            lora_rank=model.info.lora_rank,
            state=_STATES["parked" if model.client is None and model.record.state == "memory" else model.record.state],
            steps=model.steps,
            waiting=self._scheduler.queue.of(scope),
            running=kinds[0] if kinds else None,
            last_request=model.used,
            tokens_per_second=sum(one.trained for one in recent if one.scope == scope) / RATE_SECONDS,
            bytes=_held(model),
            curves=[LossCurve(loss_fn=name, points=list(curve.points)) for name, curve in curves.items()],
        )

    def _sampler(self, sampler: Sampler, recent: list[_Ended]) -> SamplerStatus:
        scope = sampler.record.sampler_id
        return SamplerStatus(
            sampler_id=scope,
            base_model=str(sampler.record.facts["base_model"]),
            path=sampler.path,
            waiting=self._scheduler.queue.of(scope, "sample"),
            tokens_per_second=sum(one.sampled for one in recent if one.scope == scope) / RATE_SECONDS,
        )


def _held(model: Model) -> int | None:
    """Bytes of a model's own weights, gradients and moments; None where it is on the disk, or on workers."""
    if model.client is None:
        return None
    try:
        own = model.client.client.local.engine.model.trainable().values()
    except ModelError:  # on workers
        return None
    moments = 8 if model.steps else 0  # two in float32
    gradients = [one.grad for one in own if one.grad is not None]
    return sum(one.nbytes + moments * one.numel() for one in own) + sum(one.nbytes for one in gradients)


def _throughput(recent: list[_Ended]) -> Throughput:
    return Throughput(
        trained_tokens=sum(one.trained for one in recent) / RATE_SECONDS,
        sampled_tokens=sum(one.sampled for one in recent) / RATE_SECONDS,
        samples=sum(one.is_sample for one in recent) / RATE_SECONDS,
        requests=len(recent) / RATE_SECONDS,
    )


def _memory() -> Memory:
    used, total = None, None
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        used = total - free
    return Memory(resident=_resident(), device_used=used, device_total=total)


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
