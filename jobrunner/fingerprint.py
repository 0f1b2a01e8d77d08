"""Owns grouping of errors: the same bug with other ids gets the same fingerprint, two bugs get two.

Pure: an exception in, 16 hex digits out. It must not raise, whatever the exception does.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

VERSION = "1"  # of the algorithm: part of the hash, so that a change starts new groups instead of mixing old ones
_FRAMES = 5  # in-app frames that count; deeper ones tell where helpers were called, not what the bug is
_FALLBACK_FRAMES = 3

_NORMALISERS = (
    (re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE), "<uuid>"),
    (re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE), "<url>"),
    (re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b"), "<email>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"(?:/[\w.@-]+){2,}"), "<path>"),
    (re.compile(r"\b(?:0x)?(?=[0-9a-f]*\d)[0-9a-f]{8,}\b", re.IGNORECASE), "<hex>"),
    (re.compile(r"(['\"])[^'\"]{21,}\1"), "<text>"),
    (re.compile(r"\d+"), "<n>"),
)
_MESSAGE_LIMIT = 2_000  # characters looked at; a message of megabytes must not cost seconds
_LIBRARIES = tuple({os.path.realpath(path) for path in (*sysconfig.get_paths().values(), sys.prefix, str(Path(__file__).parent))})


def normalise(message: str) -> str:
    """Replace what differs between two events of one bug: ids, times, addresses, paths, long quotations, numbers."""
    text = message[:_MESSAGE_LIMIT]
    for pattern, placeholder in _NORMALISERS:
        text = pattern.sub(placeholder, text)
    return text


def fingerprint(error_type: str, message: str, traceback: TracebackType | None = None, cause_type: str = "") -> str:
    """16 hex digits from the exception's type, its in-app frames as `module:function`, its normalised message and its root cause's type."""
    parts = (VERSION, error_type, *_frames(traceback), normalise(message), cause_type)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _frames(traceback: TracebackType | None) -> list[str]:
    frames: list[tuple[str, bool]] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        frames.append((f"{module}:{code.co_name}", _in_app(code.co_filename)))
        traceback = traceback.tb_next
    in_app = [name for name, ours in frames if ours]
    return in_app[-_FRAMES:] if in_app else [name for name, _ in frames[-_FALLBACK_FRAMES:]]


def _in_app(filename: str) -> bool:
    return not filename.startswith("<") and not os.path.realpath(filename).startswith(_LIBRARIES)
