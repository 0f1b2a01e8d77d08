"""Owns a private Debian cron: its own crontab, spool and mail, in a mount namespace; the machine's cron sees nothing of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Everything that cron reads or writes by a fixed path. PAM asks for what a container may not have.
SCRIPT = """
set -eu
mount --make-rprivate /
mount --bind "$1/spool" /var/spool/cron/crontabs
mount --bind "$1/empty" /etc/cron.d
mount --bind "$1/crontab" /etc/crontab
mount --bind "$1/pam" /etc/pam.d/cron
mount --bind "$1/run" /run
mount --bind "$1/sbin" /usr/sbin
exec /usr/sbin/cron -f
"""
PAM = "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
SENDMAIL = '#!/bin/sh\nexec cat >> "{mail}"\n'


class Crond:
    """A running cron.

    Args:
        directory: of this one alone.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mail = directory / "mail"
        for name in ("spool", "empty", "run", "sbin"):
            (directory / name).mkdir(parents=True)
        (directory / "crontab").touch()
        (directory / "pam").write_text(PAM)
        shutil.copy2("/usr/sbin/cron", directory / "sbin" / "cron")
        sendmail = directory / "sbin" / "sendmail"
        sendmail.write_text(SENDMAIL.format(mail=self.mail))
        sendmail.chmod(0o755)

    def install(self, text: str) -> None:
        """Make this root's crontab."""
        table = self.directory / "spool" / "root"
        table.write_text(text)
        table.chmod(0o600)

    def mailed(self) -> str:
        """Every mail it has sent: cron mails whatever a command prints."""
        return self.mail.read_text() if self.mail.exists() else ""


@contextlib.contextmanager
def running(directory: Path, crontab: str) -> Iterator[Crond]:
    """A cron with this crontab for the length of the block; it and all that it started end with it."""
    crond = Crond(directory)
    crond.install(crontab)
    # a pid namespace: when its first process ends, the kernel ends all others
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", SCRIPT, "crond", str(directory)]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(
            lambda: (directory / "run" / "crond.pid").exists() or process.poll() is not None, timeout=30, what="cron to have started"
        )
        assert process.poll() is None, (directory / "log").read_text()
        yield crond
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
