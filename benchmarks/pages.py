"""The generated parts of hand-written pages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def fill(page: Path, name: str, text: str) -> None:
    """Puts text between ``<!-- generated: NAME -->`` and the ``<!-- end -->`` that follows.

    Args:
        page: a Markdown file.
        name: that of one part of it.
        text: what comes there.
    """
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    part = re.compile(f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", re.DOTALL)
    found, count = part.subn(lambda _: f"\n\n{text.strip()}\n\n", page.read_text())
    if count != 1:
        raise ValueError(f"{page} has {count} parts {begin} ... {end}, not one")
    page.write_text(found)


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
