"""What a process left that died or was stopped: nothing of it is run again, and what is lost is said."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa

from ..operations import JSON
from .database import Database
from .holdings import models_of, samplers_of
from .records import ModelRecord, Recovered
from .tables import DONE, OPEN, models, requests, samplers, sessions


def recover(database: Database, now: float) -> Recovered:
    """Bring the ledger into order when a server starts, in one step; a second call finds nothing to do.

    Requests that waited or ran fail. Models whose last changes were in memory alone are lost; the others are parked. Clients of
    open sessions are taken to be there, for the server may have been away for long.
    """
    with database.writing(synced=True) as connection:
        rows = connection.execute(
            sa.select(models).where(models.c.state.in_(("memory", "parked"))).order_by(models.c.made)
        )
        left = models_of(rows.all())
        lost = tuple(replace(model, state="lost") for model in left if is_lost(model))
        parked = tuple(replace(model, state="parked") for model in left if not is_lost(model))
        for model in (*lost, *parked):
            same = models.c.model_id == model.model_id
            connection.execute(sa.update(models).where(same).values(state=model.state))
        by_id = {model.model_id: model for model in models_of(connection.execute(sa.select(models)).all())}
        open_rows = connection.execute(
            sa.select(requests.c.request_id, requests.c.kind, requests.c.scope, requests.c.number)
            .where(requests.c.state == OPEN)
            .order_by(requests.c.made)
        ).all()
        for row in open_rows:
            error = failure(row.kind, row.number, by_id.get(row.scope))
            values = {"error": error, "category": "server", "body": b"", "content_type": JSON, "finished": now}
            same = requests.c.request_id == row.request_id
            connection.execute(sa.update(requests).where(same).values(state=DONE, **values))
        in_memory = samplers.c.in_memory & ~samplers.c.lost
        gone = samplers_of(connection.execute(sa.select(samplers).where(in_memory).order_by(samplers.c.made)).all())
        connection.execute(sa.update(samplers).where(in_memory).values(lost=True))
        connection.execute(sa.update(sessions).where(sessions.c.ended.is_(None)).values(heartbeat=now))
    failed = tuple(row.request_id for row in open_rows)
    return Recovered(failed, lost, parked, tuple(replace(sampler, lost=True) for sampler in gone))


def is_lost(model: ModelRecord) -> bool:
    """Whether something that a client was told is done was in memory alone."""
    return model.executed_seq > model.durable_seq or model.dirty


def failure(kind: str, number: int, model: ModelRecord | None) -> str:
    """What the future of a request says that the server's end left undone."""
    start = f"{kind} (request {number}): the server stopped before this was done, and does not run it again"
    if model is None:
        return f"{start}: send it again, with a new number"
    if model.problem is not None:
        return f"{start}: {model.problem}"
    at = f"as after request {model.executed_seq}" if model.executed_seq else "as it was created"
    return f"{start}. Model {model.model_id} is {at}: send the request again, with a new number"
