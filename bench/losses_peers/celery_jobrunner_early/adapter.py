# /// script
# requires-python = ">=3.11"
#
# [tool.bench]
# title = "Celery + jobrunner://, defaults"
# server = "postgresql"
# durability = "less: Celery acknowledges before the task runs, with every broker"
# ///
"""An unmodified Celery application on our transport as it comes: what a broker can do about an early acknowledgement, which is nothing."""

from __future__ import annotations

from ourbroker import OurTransport
from protocol import serve

if __name__ == "__main__":
    serve(OurTransport())
