"""The image files to compare, in pairs."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .._images.folders import SUFFIXES, image_files

Row = dict[str, Any]
"""The results of a pair: its name with numbers, or with a problem."""


class NotComparedError(Exception):
    """Two files cannot be compared; the message is the reason."""


class Pair(NamedTuple):
    """Two files to compare.

    Attributes:
        name: the pair's name in tables.
        a: the first file.
        b: the second file.
    """

    name: str
    a: Path
    b: Path


def find_pairs(a: Path, b: Path, *, by_stem: bool = False) -> tuple[list[Pair], list[Row], int]:
    """Pairs two files, or the images of two folders that have the same path in both.

    Args:
        a: a file, or a folder whose images are taken at any depth.
        b: another file, or another folder.
        by_stem: whether the path counts without its suffix, so that ``x.png`` goes with ``x.jpg``.

    Returns:
        The pairs in the order of their names, the images that are in only one folder, and the
        number of other files.

    Raises:
        ValueError: there is nothing to compare, or a file would be compared with a folder.
    """
    for path in (a, b):
        if not path.exists():
            raise ValueError(f"{path} does not exist: pass two images or two folders of images")
    if a.is_dir() != b.is_dir():
        one, other = (a, b) if a.is_dir() else (b, a)
        raise ValueError(f"{one} is a folder and {other} a file: pass two files or two folders")
    if not a.is_dir():
        return [Pair(printable(a.name if a.name == b.name else f"{a}, {b}"), a, b)], [], 0
    (found_a, others_a), (found_b, others_b) = (_named(path, by_stem) for path in (a, b))
    if not (found_a or found_b):
        raise ValueError(
            f"{a} and {b} have no images: pass folders with files {' '.join(SUFFIXES)}"
        )
    paired, problems = [], []
    for name in sorted({*found_a, *found_b}):
        files = found_a.get(name, []), found_b.get(name, [])
        if [len(same) for same in files] == [1, 1]:
            paired.append(Pair(name, files[0][0], files[1][0]))
        elif all(files):
            why = "without its suffix" if by_stem else "in different Unicode forms"
            problems.append(problem_row(name, f"several files have this name {why}"))
        else:
            problems.append(problem_row(name, f"is only in {printable(a if files[0] else b)}"))
    if not by_stem:
        problems = list(_with_advice(problems, found_a, found_b))
    return paired, problems, others_a + others_b


def _named(folder: Path, by_stem: bool) -> tuple[dict[str, list[Path]], int]:
    """The images of a folder by their path in it, and the number of other files."""
    images, others = image_files(folder)
    found: dict[str, list[Path]] = {}
    for path in images:
        relative = path.relative_to(folder)
        # File systems differ in how they write an accent.
        name = (relative.with_suffix("") if by_stem else relative).as_posix()
        found.setdefault(printable(unicodedata.normalize("NFC", name)), []).append(path)
    return found, others


def _with_advice(
    problems: list[Row], found_a: Mapping[str, Any], found_b: Mapping[str, Any]
) -> Iterator[Row]:
    """The problems, with advice where the other folder has the name with another suffix."""
    stems = [{name.rpartition(".")[0] for name in found} for found in (found_a, found_b)]
    both = stems[0] & stems[1]
    for row in problems:
        alone = (row["file"] in found_a) != (row["file"] in found_b)
        if alone and row["file"].rpartition(".")[0] in both:
            text = f"{row['problem']}; the other has it with another suffix: pass --by-stem"
            row = {**row, "problem": text}
        yield row


def printable(name: str | Path) -> str:
    """A name, whatever its bytes, as text that can be written."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def problem_row(name: str, text: str) -> Row:
    """The row of a pair that was not compared."""
    return {"file": name, "problem": text}
