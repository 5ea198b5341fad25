"""What is forgotten of sessions that ended long ago, so that the database of a server that runs for years stays small."""

from __future__ import annotations

import sqlalchemy as sa

from .database import Database
from .tables import forgotten, losses, models, requests, samplers, sessions


def forget_sessions(database: Database, before: float) -> int:
    """Delete the sessions that ended by this time, with their models, samplers, losses and requests. Returns how many.

    Checkpoints are files, and stay. A request to what is forgotten is refused as one to what never was.
    """
    old = sa.select(sessions.c.session_id).where(sessions.c.ended <= before)
    with database.writing() as connection:
        scopes = sa.union(
            old,
            sa.select(models.c.model_id).where(models.c.session_id.in_(old)),
            sa.select(samplers.c.sampler_id).where(samplers.c.session_id.in_(old)),
        )
        for table in (requests, forgotten):
            connection.execute(sa.delete(table).where(table.c.scope.in_(scopes)))
        for table in (losses, samplers, models):
            connection.execute(sa.delete(table).where(table.c.session_id.in_(old)))
        return connection.execute(sa.delete(sessions).where(sessions.c.ended <= before)).rowcount
