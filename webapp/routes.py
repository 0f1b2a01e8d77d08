"""Owns what a route is: rule, method, and the role it needs. The tables of `api` and `pages` are all there is to call.

It must not hold a view.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from jobrunner.errors import JobNotFound
from jobrunner.filters import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Role

PUBLIC: Final = "public"  # no role is asked for: probes that tell nothing but up or down


class Route(NamedTuple):
    """One rule and method.

    Attributes:
        view: its name is the endpoint.
        needs: the role.
        api: errors are JSON rather than a page.
    """

    method: str
    rule: str
    view: Callable[..., Any]
    needs: Role | Literal["public"]
    api: bool


def job_id_of(text: str) -> int:
    """The id in a URL. Raises JobNotFound for what can be no id, however long."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or not 0 < int(text) <= MAX_ID:
        raise JobNotFound(int(text) if re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) else 0)
    return int(text)
