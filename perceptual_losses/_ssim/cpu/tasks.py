"""The share of each thread in a level, and the scratch memory that threads keep."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..._runtime.threads import cut

# Columns of a task. Its rings about fill a core's second-level cache. Narrower strips are slower,
# because each computes some columns that its neighbours compute.
STRIP = 2048
# Columns of narrow planes in one task: they share the cost that a row has besides its columns.
SIDE_BY_SIDE = 768
# Rows and columns of a task in a volume, whose rings of slices take a few megabytes.
BLOCK = 64, 246
# The least rows of a task, or slices: a band also computes some rows that its neighbours compute.
BAND = 32

_kept = threading.local()


class Scratch:
    """The scratch arrays that a share of a call needs, one after the other in its memory."""

    def __init__(self, shapes: list[tuple[int, int]], dtype: Any) -> None:
        """Lays out arrays with at least so many rows and columns."""
        # Rows lie an odd number of cache lines apart, so that those of a ring are in different
        # sets of the cache.
        line = 64 // dtype.itemsize
        # Kernels read whole vectors, which end at most a line after the last value.
        shapes = [(rows, (-(-columns // line) + 1 | 1) * line) for rows, columns in shapes]
        sizes = (dtype.itemsize * math.prod(shape) for shape in shapes)
        *begins, self._size = itertools.accumulate(sizes, initial=0)
        self._places = list(zip(shapes, begins, strict=True))
        self._dtype = dtype

    def arrays(self, memory: dict[int, Kept], share: int) -> list[Any]:
        """Uninitialised arrays in a share's memory, which grows if it has to.

        They are made once, if the share works on levels of one shape in turn.
        """
        kept = memory.get(share)
        if kept is not None and kept.scratch is self:
            return kept.arrays
        content = None if kept is None else kept.content
        if content is None or content.size < self._size:
            content = _aligned_bytes(self._size)
        arrays = [np.ndarray(shape, self._dtype, content, begin) for shape, begin in self._places]
        memory[share] = Kept(content, self, arrays)
        return arrays


class Kept(NamedTuple):
    """The memory that a thread keeps for a share of a call.

    Attributes:
        content: its bytes.
        scratch: the layout of the last call.
        arrays: the arrays of that layout.
    """

    content: Any
    scratch: Scratch
    arrays: list[Any]


def _aligned_bytes(size: int) -> Any:
    memory = np.zeros(size + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    return memory[begin : begin + size]


def kept_memory() -> dict[int, Kept]:
    """The calling thread's scratch memory, by the number of the share of a call.

    It is kept from call to call: the system takes long to hand out and clear new pages.
    """
    if not hasattr(_kept, "memory"):
        _kept.memory = {}
    memory: dict[int, Kept] = _kept.memory
    return memory


class Tasks(NamedTuple):
    """The parts of a level that threads work on.

    Attributes:
        tasks: an array with a row for each task, as the march reads it.
        scratch: the scratch arrays that the widest task needs.
        parts: the number of tasks that share a plane.
    """

    tasks: Any
    scratch: Scratch
    parts: int


def tasks_for_images(
    shape: tuple[int, ...], window_sizes: Sequence[int], threads: int, dtype: Any
) -> Tasks:
    """Tasks for `march`: all planes, shared evenly by the threads."""
    total, (height, width), (down, across) = shape[0] * shape[1], shape[2:], window_sizes
    # Windows reach beyond a strip, and so do the pixels under those windows.
    halo = 4 * (across // 2)
    strips = -(-width // STRIP)
    planes = max(1, min(SIDE_BY_SIDE // (width + halo), total // threads))
    bands = 1
    while -(-total // planes) * strips * bands % threads and height // (bands + 1) >= BAND:
        bands += 1
    tasks = [
        (p, min(planes, total - p), part, *rows, *columns)
        for p in range(0, total, planes)
        for part, (rows, columns) in enumerate(
            itertools.product(cut(height, bands), cut(width, strips))
        )
    ]
    widest = planes * (-(-width // strips) + halo)
    at_once = _rows_at_once()
    rows = 11 * (down + at_once - 1) + 9 * at_once + 10
    scratch = Scratch([(rows, _whole_steps(widest) + across)], dtype)
    return Tasks(np.array(tasks), scratch, bands * strips)


def tasks_for_volumes(
    shape: tuple[int, ...], window_sizes: Sequence[int], threads: int, dtype: Any
) -> Tasks:
    """Tasks for `march_volume`."""
    total, (depth, height, width) = shape[0] * shape[1], shape[2:]
    through, down, across = window_sizes
    halo, row_halo = 2 * (across // 2), 2 * (down // 2)
    bands, strips = -(-height // BLOCK[0]), -(-width // BLOCK[1])
    layers = 1
    while total * bands * strips * layers % threads and depth // (layers + 1) >= BAND:
        layers += 1
    tasks = [
        (volume, part, *slices, *rows, *columns)
        for volume in range(total)
        for part, (slices, rows, columns) in enumerate(
            itertools.product(cut(depth, layers), cut(height, bands), cut(width, strips))
        )
    ]
    wide = _whole_steps(-(-width // strips) + halo)
    at_once = _rows_at_once()
    # The moments have rows after those of the map, and the gradient's sums rows on both sides.
    more_rows = at_once - 1
    area = (-(-height // bands) + max(row_halo, more_rows) + more_rows) * wide
    columns = wide + 2 * max(window_sizes)
    rows, slabs = 4 + 4 * (down + at_once - 1), 8 * (through + at_once - 1) + 8 * at_once + 10
    scratch = Scratch([(rows, columns), (slabs, area)], dtype)
    return Tasks(np.array(tasks), scratch, layers * bands * strips)


def _rows_at_once() -> int:
    """The number of rows, or of slices, that the kernels sum at once."""
    # Not at the top: importing the package does not import Numba.
    from .kernels import ROWS

    return ROWS


def _whole_steps(columns: int) -> int:
    """Loops are compiled for steps of 64 values: whole steps are faster than a remainder."""
    return -(-columns // 64) * 64
