"""Rows of two images as Numba kernels read and write them: difference, total, borders."""

import numpy as np

from ...._runtime.numba_kernels import inlined, kernel, ordered
from .arguments import SYMMETRIC


@inlined
def place(image, plane, i, j):
    """The place of a pixel in the image's memory."""
    return image.starts[plane] + i * image.row + j * image.column


@kernel
def gather(image, start, out):
    """Pixels of a row from a place on, side by side."""
    for j in range(out.shape[0]):
        out[j] = image.flat[start + j * image.column]


@inlined
def store_row(image, plane, i, begin, count, row):
    """Writes a row's pixels from column ``begin`` on."""
    start = place(image, plane, i, begin)
    if image.column == 1:
        target = image.flat[start : start + count]
        for j in range(count):
            target[j] = row[j]
    else:
        for j in range(count):
            image.flat[start + j * image.column] = row[j]


@kernel
def copy(a, out):
    """Copies as many values as ``out`` holds."""
    for j in range(out.shape[0]):
        out[j] = a[j]


@kernel
def fill(value, count, out):
    """Sets the first values."""
    for j in range(count):
        out[j] = value


@inlined
def shown_pixel(index, size, padding):
    """The pixel that a position in or beside the image shows; -1 for none."""
    if 0 <= index < size:
        return index
    if padding == SYMMETRIC:
        index = -1 - index if index < 0 else 2 * size - 1 - index
        if 0 <= index < size:
            return index
    return -1


@ordered
def _difference(a, b, offset):
    """The difference of pixels, less its offset: nearly equal pixels have an exact one."""
    return (a - b) - offset


@ordered
def _total(a, b, half):
    """The total of pixels, less its offset: pixels near to the offset have an exact one."""
    return (a - half) + (b - half)


@ordered
def representable(offset, low):
    """An offset next to this one, whose half plus ``low`` is a number.

    That sum is subtracted from each pixel.
    """
    return (offset + (low + low)) - (low + low)


@inlined
def _combine(x, y, offset_d, half, d, t):
    for j in range(x.shape[0]):
        d[j] = _difference(x[j], y[j], offset_d)
        t[j] = _total(x[j], y[j], half)


@inlined
def load_row(
    x, y, plane, height, width, i, first, low, offset_d, offset_t, padding, at, count, d, t
):  # fmt: skip
    """Difference and total of a row from column ``first`` on, each less its offset.

    They are written from ``at`` on.
    """
    here = shown_pixel(i, height, padding)
    if here < 0:
        fill(-offset_d, count, d[at:])
        fill(-offset_t, count, t[at:])
        return
    begin, end = max(first, 0), min(first + count, width)
    x_at, y_at = place(x, plane, here, begin), place(y, plane, here, begin)
    half = d.dtype.type(0.5) * offset_t + low
    # The place of column 0 in the row.
    at -= first
    d_row, t_row = d[at + begin : at + end], t[at + begin : at + end]
    if x.column == 1 and y.column == 1:
        _combine(x.flat[x_at : x_at + end - begin], y.flat[y_at:], offset_d, half, d_row, t_row)
    else:
        for j in range(end - begin):
            a, b = x.flat[x_at + j * x.column], y.flat[y_at + j * y.column]
            d_row[j] = _difference(a, b, offset_d)
            t_row[j] = _total(a, b, half)
    for side in range(2):
        beside = range(first, begin) if side == 0 else range(end, first + count)
        for j in beside:
            column = shown_pixel(j, width, padding)
            if column < 0:
                d[at + j] = -offset_d
                t[at + j] = -offset_t
            else:
                d[at + j] = d[at + column]
                t[at + j] = t[at + column]


@kernel
def local_offsets(x, y, plane, top, bottom, left, right, low):
    """Means of the difference and of the total over a few pixels, without outliers.

    One pixel of 1e5 among them would move the offset of all others so far that their variances
    cancel.
    """
    offset_d = offset_t = 0.0
    limit_d = limit_t = np.inf
    for _ in range(2):
        count_d = count_t = 0
        sum_d = sum_t = squares_d = squares_t = 0.0
        for i in range(top, bottom, max(1, (bottom - top) // 8)):
            for j in range(left, right, max(2, (right - left) // 16)):
                a = x.flat[x.starts[plane] + i * x.row + j * x.column]
                b = y.flat[y.starts[plane] + i * y.row + j * y.column]
                from_d, from_t = a - b - offset_d, a + b - offset_t
                if abs(from_d) < limit_d:
                    sum_d += from_d
                    squares_d += from_d * from_d
                    count_d += 1
                if abs(from_t) < limit_t:
                    sum_t += from_t
                    squares_t += from_t * from_t
                    count_t += 1
        # The counts are zero where pixels are flat, or not finite.
        if count_d > 0:
            mean = sum_d / count_d
            offset_d += mean
            limit_d = 2 * np.sqrt(max(squares_d / count_d - mean * mean, 0.0))
        if count_t > 0:
            mean = sum_t / count_t
            offset_t += mean
            limit_t = 2 * np.sqrt(max(squares_t / count_t - mean * mean, 0.0))
    offset_t -= 2 * low
    # Pixels that are not finite thus stay in the windows that hold them.
    return (
        offset_d if abs(offset_d) < np.inf else 0.0,
        offset_t if abs(offset_t) < np.inf else 0.0,
    )
