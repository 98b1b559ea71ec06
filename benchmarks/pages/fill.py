"""The generated parts of hand-written pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


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
    """The same with a file."""
    page.write_text(filled(page.read_text(), name, content))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; all columns but the first are of numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def provenance(environment: dict[str, Any]) -> str:
    """One sentence on where numbers come from."""
    versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items() if v)
    return (
        f"{environment['device']}, {environment['system'].split('-')[0]}, Python "
        f"{environment['python']}, {versions}; commit {environment['commit']}, "
        f"{environment['date'][:10]}."
    )
