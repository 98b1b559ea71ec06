"""The metrics of all pairs as a table, as CSV or as JSON."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from .. import __version__
from .._runtime.output import naming, replacing
from .files import Row
from .metrics import statistics, worst_first

STDOUT = Path("-")
"""The name that stands for standard output."""


def format_table(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The numbers as text, the worst pairs first, and statistics below them.

    Letters of names that would control the terminal are escaped.

    Args:
        rows: the results of all pairs.
        labels: the columns' titles, by the rows' keys.
    """
    compared = worst_first(rows)
    lines = [["file", "size", *labels.values()]]
    for row in compared:
        size = f"{row['width']}x{row['height']}"
        lines.append([escaped(row["file"]), size, *(value_text(key, row[key]) for key in labels)])
    if len(compared) > 1:
        for name, values in statistics(rows).items():
            last = (value_text(key, values[key]) if key in values else "" for key in labels)
            lines.append([f"{name} of {len(compared)}", "", *last])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def escaped(text: str) -> str:
    r"""A text in one line, in which letters that can't be printed are escapes such as ``\n``."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def value_text(key: str, value: Any) -> str:
    """A value with the digits that its column shows."""
    if key == "difference":
        return f"{value:.1e}"
    if key == "psnr":
        return f"{value:.3f}"
    if key == "mse":
        return f"{value:.6g}"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


class CsvFile:
    """A line for each file, whether it was compared or not, written as soon as it is known.

    Args:
        path: the file, or `STDOUT`.
        keys: the columns.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.file: TextIO | None = None
        if path != STDOUT:
            self.file = path.open("w", encoding="utf-8", newline="", buffering=1)
        self.path, self.keys = path, list(keys)
        try:
            self.write(dict(zip(keys, keys, strict=True)))
        except OSError:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def write(self, row: Row) -> None:
        """Writes a row."""
        text = io.StringIO()
        csv.DictWriter(text, self.keys, restval="", lineterminator="\n").writerow(row)
        if self.file:
            with naming(self.path):
                self.file.write(text.getvalue())
        else:
            print_encodable(text.getvalue(), end="")
            sys.stdout.flush()

    def close(self) -> None:
        """Closes the file, which has every row already."""
        if self.file:
            self.file.close()


def write_json(
    path: Path, rows: Sequence[Row], settings: Mapping[str, Any], *, complete: bool
) -> None:
    """Writes all results and the settings that they depend on; infinities and NaN are null.

    Args:
        path: the file, or `STDOUT`.
        rows: the results.
        settings: the options that they depend on.
        complete: whether every pair has a row.
    """
    found = statistics(rows)
    record: dict[str, Any] = {
        "version": __version__,
        **settings,
        "complete": complete,
        "files": list(rows),
        **{name: found.get(name) for name in ("min", "median", "mean", "worst")},
    }
    text = json.dumps(finite(record), indent=2, allow_nan=False) + "\n"
    if path == STDOUT:
        print_encodable(text, end="")
        return
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def finite(record: Any) -> Any:
    """The record with ``None`` for numbers that JSON does not have."""
    if isinstance(record, dict):
        return {key: finite(value) for key, value in record.items()}
    if isinstance(record, list):
        return [finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def say(text: str) -> None:
    """Prints a line on stderr, escaped. A message that cannot be printed changes no result."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(escaped(text), file=sys.stderr)


def print_encodable(text: str, end: str = "\n") -> None:
    """Prints a text, with escapes for letters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end)
