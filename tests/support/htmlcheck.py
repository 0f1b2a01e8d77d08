"""Owns reading a page as a parser does: is it well-formed, and is there anything in it that the policy forbids?

It must not look for payloads: what a hostile string must not become (a tag, an attribute, a link) is the same for all of them.
"""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
TAGS = {
    "html", "head", "meta", "title", "link", "body", "a", "svg", "symbol", "circle", "path", "rect", "use", "g", "text", "header", "nav", "span",
    "div", "p", "strong", "main", "footer", "time", "h1", "h2", "form", "label", "input", "button", "table", "thead", "tbody", "tr", "th", "td",
    "code", "pre", "small", "section", "dl", "dt", "dd", "details", "summary", "meter", "progress", "ul", "ol", "li",
}  # fmt: skip


class Page(HTMLParser):
    """One page; `problems` is empty when it is clean."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]
        self.problems += [f"id {name!r} is given twice" for name in set(self.ids) if self.ids.count(name) > 1]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what it opens and judge its attributes."""
        if tag not in TAGS:
            self.problems.append(f"<{tag}> has no business here")
        if tag not in VOID:
            self._open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As of a start tag, closed at once."""
        if tag not in TAGS:
            self.problems.append(f"<{tag}/> has no business here")
        self._attributes(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """Close what was opened last."""
        if not self._open or self._open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        """Keep what a person reads."""
        self.text.append(data)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name.startswith("on") or name in ("style", "srcdoc", "formaction"):
                self.problems.append(f"<{tag} {name}> is forbidden")
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "action"):
                self.links.append(value or "")
                if not (value or "").startswith(("/", "#", "data:image/svg+xml,")) or (value or "").startswith("//"):
                    self.problems.append(f"<{tag} {name}={value!r}> leads away")
        if len({name for name, _ in attrs}) < len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice")
