"""Runs Jobrunner's migrations in Jobrunner's own schema, with its own version table.

`jobrunner.migrate` hands over a connection in `config.attributes["connection"]`; the plain `alembic` command of a checkout
falls back to `JOBRUNNER_DSN`. It must not see or touch any table of the user's.
"""

import os

import sqlalchemy as sa
from alembic import context

SCHEMA = "jobrunner"

OPTIONS = {
    "version_table": "alembic_version",
    "version_table_schema": SCHEMA,
    "transaction_per_migration": True,
    "target_metadata": context.config.attributes.get("target_metadata"),
    "include_schemas": True,
    "include_name": lambda name, kind, _parents: name == SCHEMA if kind == "schema" else True,
}


def run_offline() -> None:
    """Print the SQL instead of running it; needs no connection."""
    # paramstyle: psycopg's own doubles every percent sign, and format('%I') inside a function must reach the server as it is
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"}, literal_binds=True, **OPTIONS)
    with context.begin_transaction():
        if context.get_starting_revision_argument() is None:
            # not for a schema that is there: even IF NOT EXISTS asks for a right that the user of an upgrade may lack
            context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.run_migrations()


def run_online(connection: sa.Connection) -> None:
    """Upgrade or downgrade on `connection`; the caller holds the lock that keeps concurrent upgrades apart."""
    if not connection.scalar(sa.text("SELECT to_regnamespace(:schema)"), {"schema": SCHEMA}):
        connection.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    connection.commit()
    context.configure(connection=connection, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    run_offline()
elif (given := context.config.attributes.get("connection")) is not None:
    run_online(given)
else:
    engine = sa.create_engine(os.environ["JOBRUNNER_DSN"].replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as own:
        run_online(own)
