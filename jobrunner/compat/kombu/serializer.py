"""Owns what Kombu finds under its entry point group `kombu.serializers`: a plain JSON serializer called `jobrunner`.

It must not do more: it is there because Kombu, which has no entry points for transports, loads serializers by itself, and with this
one the package around it. So an application needs no import to have the transport.
"""

from __future__ import annotations

from kombu.utils.json import dumps, loads

# As `kombu.serialization.register` takes it after the name. Nobody is served it unasked: Celery accepts `json` only, unless told.
SERIALIZER = (dumps, loads, "application/x-jobrunner+json", "utf-8")
