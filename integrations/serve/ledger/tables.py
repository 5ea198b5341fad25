"""The tables of the ledger, and the version of their form."""

from __future__ import annotations

import sqlalchemy as sa

#: The form of the tables below. A database of another version is refused when it is opened: see `database`.
VERSION = 1
#: A request is open until it is done, and then its result expires. A refused one only used up its number.
OPEN, DONE, EXPIRED, REFUSED = "open", "done", "expired", "refused"

tables = sa.MetaData()

#: `version` of the tables, and `server`: the one process that may write, by a name that it drew when it started.
about = sa.Table(
    "about",
    tables,
    sa.Column("name", sa.String(16), primary_key=True),
    sa.Column("value", sa.String(64), nullable=False),
)

requests = sa.Table(
    "requests",
    tables,
    sa.Column("request_id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("scope", sa.String(256), nullable=False),
    sa.Column("counter", sa.String(16), nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("body_hash", sa.String(128), nullable=False),
    sa.Column("state", sa.String(8), nullable=False),
    sa.Column("made", sa.Double, nullable=False),
    sa.Column("finished", sa.Double),
    sa.Column("fetched", sa.Double),
    sa.Column("body", sa.LargeBinary),
    sa.Column("content_type", sa.String(64)),
    sa.Column("error", sa.Text),
    sa.Column("category", sa.String(8)),
    sa.UniqueConstraint("owner", "scope", "counter", "number", name="one_request_a_number"),
    sa.Index("requests_by_age", "state", "finished"),
)

#: The highest number of each counter whose row is gone: a request up to it is too old to be taken.
forgotten = sa.Table(
    "forgotten",
    tables,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("scope", sa.String(256), primary_key=True),
    sa.Column("counter", sa.String(16), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)

sessions = sa.Table(
    "sessions",
    tables,
    sa.Column("session_id", sa.String(256), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("idempotency_key", sa.String(256)),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("made", sa.Double, nullable=False),
    sa.Column("heartbeat", sa.Double, nullable=False),
    sa.Column("ended", sa.Double),
    sa.Column("reason", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key", name="one_session_a_key"),
)

models = sa.Table(
    "models",
    tables,
    sa.Column("model_id", sa.String(256), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("session_id", sa.String(256), nullable=False, index=True),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("made", sa.Double, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("executed_seq", sa.BigInteger, nullable=False),
    sa.Column("durable_seq", sa.BigInteger, nullable=False),
    sa.Column("durable_path", sa.Text),
    sa.Column("checkpoint", sa.Text),
    sa.Column("checkpoint_seq", sa.BigInteger, nullable=False),
    sa.Column("dirty", sa.Boolean, nullable=False),
)

samplers = sa.Table(
    "samplers",
    tables,
    sa.Column("sampler_id", sa.String(256), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False, index=True),
    sa.Column("session_id", sa.String(256), nullable=False, index=True),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("made", sa.Double, nullable=False),
    sa.Column("in_memory", sa.Boolean, nullable=False),
    sa.Column("lost", sa.Boolean, nullable=False),
)

losses = sa.Table(
    "losses",
    tables,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("loss_id", sa.String(256), primary_key=True),
    sa.Column("session_id", sa.String(256), nullable=False, index=True),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("made", sa.Double, nullable=False),
)
