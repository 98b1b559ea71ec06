"""Rows of two images as Numba kernels read and write them: difference, total, borders."""

import numpy as np

from ...._runtime.numba_kernels import inlined, kernel, ordered
from .constants import SYMMETRIC


@inlined
def _place(image, plane, i, j):
    return image.starts[plane] + i * image.row + j * image.column


@kernel
def _gather(image, place, out):
    """Pixels of a row from a place on, side by side."""
    for j in range(out.shape[0]):
        out[j] = image.flat[place + j * image.column]


@inlined
def _store(image, plane, i, begin, count, row):
    start = _place(image, plane, i, begin)
    if image.column == 1:
        target = image.flat[start : start + count]
        for j in range(count):
            target[j] = row[j]
    else:
        for j in range(count):
            image.flat[start + j * image.column] = row[j]


@kernel
def _copy(a, out):
    for j in range(out.shape[0]):
        out[j] = a[j]


@kernel
def _fill(value, count, out):
    for j in range(count):
        out[j] = value


@inlined
def _shown(index, size, padding):
    """The pixel that a position in or beside the image shows; -1 for none."""
    if 0 <= index < size:
        return index
    if padding == SYMMETRIC:
        index = -1 - index if index < 0 else 2 * size - 1 - index
        if 0 <= index < size:
            return index
    return -1


@ordered
def _difference(a, b, level):
    """The difference of pixels, less its level: nearly equal pixels have an exact one."""
    return (a - b) - level


@ordered
def _pixel_total(a, b, half):
    """The total of pixels, less its level: of pixels near to the level an exact one."""
    return (a - half) + (b - half)


@ordered
def _representable(level, low):
    """A level next to this one: half of it and ``low`` are a number, which each pixel is less."""
    return (level + (low + low)) - (low + low)


@inlined
def _combine(x, y, level_d, half, d, t):
    for j in range(x.shape[0]):
        d[j] = _difference(x[j], y[j], level_d)
        t[j] = _pixel_total(x[j], y[j], half)


@inlined
def _load(x, y, plane, height, width, i, first, low, level_d, level_t, padding, at, count, d, t):
    """Difference and total of a row from column ``first`` on, less their levels, from ``at`` on."""
    here = _shown(i, height, padding)
    if here < 0:
        _fill(-level_d, count, d[at:])
        _fill(-level_t, count, t[at:])
        return
    begin, end = max(first, 0), min(first + count, width)
    x_at, y_at = _place(x, plane, here, begin), _place(y, plane, here, begin)
    half = d.dtype.type(0.5) * level_t + low
    # What belongs into column 0.
    at -= first
    d_row, t_row = d[at + begin : at + end], t[at + begin : at + end]
    if x.column == 1 and y.column == 1:
        _combine(x.flat[x_at : x_at + end - begin], y.flat[y_at:], level_d, half, d_row, t_row)
    else:
        for j in range(end - begin):
            a, b = x.flat[x_at + j * x.column], y.flat[y_at + j * y.column]
            d_row[j] = _difference(a, b, level_d)
            t_row[j] = _pixel_total(a, b, half)
    for side in range(2):
        beside = range(first, begin) if side == 0 else range(end, first + count)
        for j in beside:
            column = _shown(j, width, padding)
            if column < 0:
                d[at + j] = -level_d
                t[at + j] = -level_t
            else:
                d[at + j] = d[at + column]
                t[at + j] = t[at + column]


@kernel
def _levels(x, y, plane, top, bottom, left, right, low):
    """Means of the difference and of the total over a few pixels, without those far from most.

    One pixel of 1e5 among them would move the level of all others so far that their variances
    cancel.
    """
    level_d = level_t = 0.0
    reach_d = reach_t = np.inf
    for _ in range(2):
        count_d = count_t = 0
        sum_d = sum_t = squares_d = squares_t = 0.0
        for i in range(top, bottom, max(1, (bottom - top) // 8)):
            for j in range(left, right, max(2, (right - left) // 16)):
                a = x.flat[x.starts[plane] + i * x.row + j * x.column]
                b = y.flat[y.starts[plane] + i * y.row + j * y.column]
                off_d, off_t = a - b - level_d, a + b - level_t
                if abs(off_d) < reach_d:
                    sum_d += off_d
                    squares_d += off_d * off_d
                    count_d += 1
                if abs(off_t) < reach_t:
                    sum_t += off_t
                    squares_t += off_t * off_t
                    count_t += 1
        # None where pixels are flat, or not finite.
        if count_d > 0:
            mean = sum_d / count_d
            level_d += mean
            reach_d = 2 * np.sqrt(max(squares_d / count_d - mean * mean, 0.0))
        if count_t > 0:
            mean = sum_t / count_t
            level_t += mean
            reach_t = 2 * np.sqrt(max(squares_t / count_t - mean * mean, 0.0))
    level_t -= 2 * low
    # So that what is not finite stays in the windows that hold it.
    return (
        level_d if abs(level_d) < np.inf else 0.0,
        level_t if abs(level_t) < np.inf else 0.0,
    )
