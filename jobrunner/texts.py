"""Owns making any text storable and short enough to keep. It must not know what the text is about."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(?P<before>://[^\s:/@]*:)[^\s@]+(?=@)|(?P<key>\bpassword\s*=\s*)('[^']*'|[^\s&'\"]+)", re.IGNORECASE)


def storable(text: str) -> str:
    """`text` without what PostgreSQL's text cannot hold: NUL and lone surrogates become their escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, limit: int) -> str:
    """At most about `limit` characters: two thirds of them from the head, the rest from the tail, the gap counted."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n… {len(text) - limit:,} characters cut …\n{text[-tail:]}"


def redacted(text: str) -> str:
    """`text` without passwords, as they stand in addresses and connection strings."""
    return _PASSWORD.sub(lambda match: f"{match['before'] or match['key']}***", text)
