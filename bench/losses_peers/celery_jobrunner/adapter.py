# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "Celery + jobrunner://, late acks"
# server = "postgresql"
# durability = "at least once, within a lease and a third (40 s unless set) of the worker's death"
# ///
"""An unmodified Celery application on our transport, with late acknowledgement."""

from __future__ import annotations

from celeries import SAFE
from ourbroker import OurTransport
from protocol import serve


class Late(OurTransport):
    """`task_acks_late` and `task_reject_on_worker_lost`."""

    settings = SAFE


if __name__ == "__main__":
    serve(Late())
