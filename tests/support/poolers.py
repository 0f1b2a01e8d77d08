"""Owns a PgBouncer in transaction mode before a database."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import psycopg

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def pgbouncer(dsn: str, directory: Path) -> Iterator[str]:
    """The address of a PgBouncer before `dsn`, with two server connections for all; its files are in `directory`."""
    parts = urlsplit(dsn)
    known = {key: values[0] for key, values in parse_qs(parts.query).items()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = directory / "users.txt"
    users.write_text(f'"{parts.username}" ""\n')
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"[databases]\npooled = host={known['host']} port={known['port']} dbname={parts.path[1:]} user={parts.username}\n"
        f"[pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\nauth_type=any\nauth_file={users}\n"
        "pool_mode=transaction\ndefault_pool_size=2\nmin_pool_size=2\nmax_client_conn=100\n"
    )
    options: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to be root; the owner of the server's socket may pass
        owner = pwd.getpwuid(Path(known["host"]).stat().st_uid)
        for each in (directory, *directory.parents):
            if each.stat().st_uid == 0 and each.stat().st_mode & 0o055 != 0o055:
                each.chmod(each.stat().st_mode | 0o055)
        options = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    pooled = f"postgresql://{parts.username}@127.0.0.1:{port}/pooled"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(["pgbouncer", str(config)], stdout=log, stderr=log, **options)
    try:
        wait_until(lambda: _answers(pooled), timeout=10, what=f"PgBouncer to answer: {(directory / 'log').read_text()}")
        yield pooled
    finally:
        process.terminate()
        process.wait()


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, prepare_threshold=None).close()
    except psycopg.OperationalError:
        return False
    return True
