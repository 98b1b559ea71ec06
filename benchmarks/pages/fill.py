"""The generated parts of hand-written pages."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def parts(text: str) -> list[str]:
    """The names of the generated parts of a page."""
    return re.findall(r"<!-- generated: (.+?) -->", text)


def filled(text: str, name: str, content: str) -> str:
    """A page with new content between ``<!-- generated: NAME -->`` and the ``<!-- end -->`` after.

    Args:
        text: the page, in Markdown.
        name: that of one of its parts.
        content: what comes there.
    """
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    part = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    found, count = part.subn(lambda _: f"\n\n{content.strip()}\n\n", text)
    if count != 1:
        raise ValueError(f"the page has {count} parts {begin} ... {end}, not one")
    return found


def fill(page: Path, name: str, content: str) -> None:
    """Fills a part of a page that is a file."""
    page.write_text(filled(page.read_text(), name, content))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are of numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def wrapped(part: str) -> str:
    """A paragraph, in lines of one width again after numbers have been put in."""
    if part.startswith(("#", "|", "!", "*")):
        return part
    return textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)
