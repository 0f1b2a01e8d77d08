"""Checks the Markdown files: every relative link leads to a file, every `#anchor` to a heading. Looks at nothing outside."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("*.md", "docs/**/*.md", "examples/**/*.md", "bench/**/*.md")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"^(?:[a-z][a-z+.-]*:|//)")


def anchors(text: str) -> set[str]:
    """The anchors that Markdown renderers give to the headings of a text, and those written out as `id="…"`."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 1
        name = slug
        while name in found:
            name, number = f"{slug}-{number}", number + 1
        found.add(name)
    return found | set(re.findall(r"id=\"([^\"]+)\"", text))


def problems(page: Path) -> list[str]:
    """One sentence for each link of a page that leads nowhere."""
    text = CODE.sub("", FENCE.sub("", page.read_text()))
    found = []
    for target in (one or other for one, other in LINK.findall(text)):
        if ELSEWHERE.match(target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path) if path else page
        if not file.exists():
            found.append(f"{page.relative_to(ROOT)}: {target} leads to no file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
            found.append(f"{page.relative_to(ROOT)}: {target} leads to no heading")
    return found


def main() -> int:
    """Print what is wrong; 1 when anything is."""
    pages = sorted({page for place in PLACES for page in ROOT.glob(place)})
    found = [problem for page in pages for problem in problems(page)]
    print("\n".join([*found, f"{len(pages)} Markdown files, {len(found)} broken links"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
