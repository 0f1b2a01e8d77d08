"""A user's own Alembic beside ours, through the real `alembic` command: neither sees, proposes or changes anything of the other's."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from jobrunner import migrate
from tests.support.commands import run

if TYPE_CHECKING:
    from pathlib import Path

ENV = """
import os

import sqlalchemy as sa
from alembic import context
from models import metadata

import jobrunner.migrate

engine = sa.create_engine(os.environ["SHOP_DSN"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, **OPTIONS)
    with context.begin_transaction():
        context.run_migrations()
"""
OPTIONS = {
    "without schemas": "{}",
    "with schemas": '{"include_schemas": True, "include_name": jobrunner.migrate.include_name}',
}
MODELS = """
import sqlalchemy as sa

metadata = sa.MetaData()
sa.Table("orders", metadata, sa.Column("id", sa.Integer, primary_key=True))
sa.Table("jobs", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("title", sa.Text))
"""
IN_SCHEMA = 'sa.Table("items", metadata, sa.Column("id", sa.Integer, primary_key=True), schema="stock")\n'
MORE = 'sa.Table("customers", metadata, sa.Column("id", sa.Integer, primary_key=True))\n'
TEMPLATE = '''"""${message}"""
from alembic import op
import sqlalchemy as sa

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''


class Project:
    """A shop with its own models and migrations."""

    def __init__(self, home: Path, dsn: str, options: str) -> None:
        self.home, self.dsn = home, dsn
        (home / "theirs" / "versions").mkdir(parents=True)
        (home / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/theirs\nprepend_sys_path = .\npath_separator = os\n")
        (home / "theirs" / "env.py").write_text(ENV.replace("OPTIONS", options))
        (home / "theirs" / "script.py.mako").write_text(TEMPLATE)
        self.add_models(MODELS)
        if "include_schemas" in options:
            self.add_models(IN_SCHEMA)

    def add_models(self, text: str) -> None:
        """Write more models."""
        with (self.home / "models.py").open("a") as file:
            file.write(text)

    def alembic(self, *arguments: str) -> str:
        """Run the real command; returns what it printed."""
        url = "postgresql+psycopg" + self.dsn.removeprefix("postgresql")
        done = run(sys.executable, "-m", "alembic", *arguments, cwd=self.home, env={"SHOP_DSN": url})
        return done.stdout + done.stderr

    def autogenerate(self, name: str) -> str:
        """The text of the revision that Alembic proposes."""
        self.alembic("revision", "--autogenerate", "--rev-id", name, "-m", name)
        return next((self.home / "theirs" / "versions").glob(f"{name}_*.py")).read_text()


@pytest.fixture(params=OPTIONS)
def project(request, empty_dsn, tmp_path):
    """A shop whose first migration has run, on a database with our schema beside."""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA stock")
    shop = Project(tmp_path, empty_dsn, OPTIONS[request.param])
    shop.autogenerate("first")
    shop.alembic("upgrade", "head")
    migrate.upgrade(empty_dsn)
    return shop


def state_of(dsn):
    """Their version and ours."""
    with psycopg.connect(dsn) as connection:
        theirs = connection.execute("SELECT version_num FROM public.alembic_version").fetchall()
        return theirs, connection.execute(
            "SELECT to_regclass('public.orders') IS NOT NULL, to_regclass('public.jobs') IS NOT NULL"
        ).fetchone()


def test_nothing_of_ours_is_proposed(project):
    """After our upgrade their autogenerate proposes only their own changes, and ours is untouched by running them."""
    project.add_models(MORE)
    proposed = project.autogenerate("second")
    assert proposed.count("op.create_table") == 1
    assert "customers" in proposed
    assert "jobrunner" not in proposed
    assert "jobs" not in proposed
    project.alembic("upgrade", "head")
    project.alembic("check")
    assert migrate.drift(project.dsn) == []


def test_neither_disturbs_the_others_version(project):
    """Our upgrade and downgrade leave their version and tables alone; their downgrade leaves ours."""
    assert state_of(project.dsn) == ([("first",)], (True, True))
    migrate.downgrade(project.dsn, "base")
    assert state_of(project.dsn) == ([("first",)], (True, True))
    migrate.upgrade(project.dsn)
    project.alembic("downgrade", "base")
    assert state_of(project.dsn) == ([], (False, False))
    assert migrate.check(project.dsn).up_to_date
    assert migrate.drift(project.dsn) == []


def test_a_search_path_that_shows_our_schema_first_is_warned_about(empty_dsn, caplog):
    """A role whose own tables would be made among ours, and whose Alembic would read our version table, is told so."""
    migrate.upgrade(empty_dsn)
    assert caplog.text == ""
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = jobrunner, public', current_database()); END $$"
        )
    migrate.downgrade(empty_dsn, "base")
    migrate.upgrade(empty_dsn)
    assert "ALTER ROLE that_user SET search_path = public" in caplog.text
