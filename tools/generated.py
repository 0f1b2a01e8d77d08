"""Owns the part of a page of the docs that a command writes: it stands between two marks, the rest is written by hand.

It must not know what stands there.
"""

from __future__ import annotations

from typing import NamedTuple


class Marks(NamedTuple):
    """The lines around the part.

    Attributes:
        begin: says which command writes it.
        end: the line after it.
    """

    begin: str
    end: str = "<!-- end -->"

    @classmethod
    def of(cls, command: str) -> Marks:
        """Those of a command."""
        return cls(f"<!-- begin: {command} -->")

    def split(self, page: str) -> tuple[str, str, str]:
        """What stands before, between and after the marks. Raises ValueError when they are missing."""
        before, begin, rest = page.partition(self.begin)
        part, end, after = rest.partition(self.end)
        if not begin or not end:
            raise ValueError(f"the page has no {self.begin} … {self.end}")
        return before, part.strip("\n"), after

    def replaced(self, page: str, part: str) -> str:
        """The page with another part. Raises ValueError when the marks are missing."""
        before, _, after = self.split(page)
        return f"{before}{self.begin}\n{part}\n{self.end}{after}"
