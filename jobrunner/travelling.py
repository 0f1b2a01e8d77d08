"""Owns what to say of things that people hand to threads and that no other process can have: apps, requests, sessions, files, locks.

It must not import the packages that they come from: who has such a thing has imported them.
"""

from __future__ import annotations

from typing import NamedTuple


class Advice(NamedTuple):
    """A sentence's end that says what a value is, and what to do instead."""

    problem: str
    instead: str


_APP = Advice("is the application, of which every worker has its own", "leave it out, and use flask.current_app in the function")
_REQUEST = Advice("is a request, which is over when the function runs", "pass what the function needs of it, such as request.args['page']")
_CONTEXT = Advice("belongs to this request", "pass what the function needs of it; an app context of its own is around every job")
_PROXY = Advice(
    "is a stand-in (such as current_app, g, request or current_user) that means something else in every request",
    "pass the id, or what else the function needs of it",
)
_UPLOAD = Advice("is an uploaded file, which is gone with its request", "save it, and pass the path or the id")
_MESSAGE = Advice("is a message object", "pass what it is made of (recipient, subject, ids), and make it in the function")
_SESSION = Advice("is a connection to a database, which belongs to this process", "leave it out: db.session in the function is its own")
_FILE = Advice("is an open file, which belongs to this process", "pass its path")
_SOCKET = Advice("is a connection, which belongs to this process", "pass the address, and connect in the function")
_LOCK = Advice("holds for the threads of this process only", "pass the id of what is being worked on; a row's lock holds for all of them")
_STREAM = Advice("can be read only once, here", "pass a list, or read it in the function")

# By the package and the name of a class or one above it.
_KNOWN = {
    "flask.Flask": _APP, "quart.Quart": _APP, "flask.Blueprint": _APP,
    "flask.Request": _REQUEST, "werkzeug.Request": _REQUEST, "quart.Request": _REQUEST,
    "flask.AppContext": _CONTEXT, "flask.RequestContext": _CONTEXT, "flask._AppCtxGlobals": _CONTEXT, "flask.SessionMixin": _CONTEXT,
    "flask.Response": _CONTEXT, "werkzeug.Response": _CONTEXT,
    "werkzeug.LocalProxy": _PROXY,
    "werkzeug.FileStorage": _UPLOAD,
    "flask_mail.Message": _MESSAGE, "flask_mailman.EmailMessage": _MESSAGE, "flask_mailing.MessageSchema": _MESSAGE,
    "email.Message": _MESSAGE,
    "sqlalchemy.Session": _SESSION, "sqlalchemy.AsyncSession": _SESSION, "sqlalchemy.scoped_session": _SESSION,
    "sqlalchemy.Engine": _SESSION, "sqlalchemy.Connection": _SESSION, "flask_sqlalchemy.SQLAlchemy": _SESSION,
    "psycopg.BaseConnection": _SESSION, "psycopg2.connection": _SESSION,
    "_io._IOBase": _FILE, "io.IOBase": _FILE, "tempfile._TemporaryFileWrapper": _FILE,
    "_socket.socket": _SOCKET, "requests.Session": _SOCKET, "smtplib.SMTP": _SOCKET,
    "_thread.lock": _LOCK, "_thread.RLock": _LOCK, "threading.Event": _LOCK, "threading.Condition": _LOCK, "threading.Semaphore": _LOCK,
    "threading.Thread": _LOCK, "queue.Queue": _LOCK, "concurrent.Future": _LOCK,
    "builtins.generator": _STREAM, "builtins.map": _STREAM, "builtins.filter": _STREAM, "builtins.zip": _STREAM,
}  # fmt: skip


def advice(value: object) -> Advice | None:
    """What to say of a value that is known to stay where it is; None for all others. Asks the value nothing: a stand-in would answer."""
    for cls in type(value).__mro__:
        found = _KNOWN.get(f"{cls.__module__.partition('.')[0]}.{cls.__name__}")
        if found is not None:
            return found
    return None
