"""The image files of a folder, without those that systems and programs leave there."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The names' endings by which folders are searched, in upper or lower case."""

LEFTOVERS = {"@eaDir", "__MACOSX", "Thumbs.db"}
"""The names of thumbnails and other leftovers, beside all names that begin with a dot."""


def image_files(folder: Path) -> tuple[list[Path], int]:
    """The images at any depth, in the order of their paths, and the number of other files.

    Leftovers count as neither: ``._photo.jpg`` is no photo, and ``@eaDir`` has only thumbnails.
    """
    images: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_leftover(name)]
        for name in files:
            if is_leftover(name):
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                images.append(Path(place, name))
            else:
                others += 1
    return sorted(images), others


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system or a program."""
    return name.startswith(".") or name in LEFTOVERS
