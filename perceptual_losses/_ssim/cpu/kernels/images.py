"""Rows of two images as Numba kernels read and write them: difference, total, borders."""

from ...._runtime.numba_kernels import contracted, inlined, kernel, ordered
from .arguments import SYMMETRIC
from .prefetch import ROWS_AHEAD, prefetch


@inlined
def place(image, plane, i, j):
    """The place of a pixel in the image's memory."""
    return image.starts[plane] + i * image.row + j * image.column


@kernel
def gather(image, start, out):
    """Copies pixels of a row, from the place ``start`` on, into contiguous memory."""
    for j in range(out.shape[0]):
        out[j] = image.flat[start + j * image.column]


@inlined
def store_row(image, plane, i, begin, valid, row):
    """Writes a row's pixels from column ``begin`` on.

    If ``valid`` is not ``None``, zeros are written to the pixels that are not valid.
    """
    start = place(image, plane, i, begin)
    if image.column == 1:
        target = image.flat[start : start + row.shape[0]]
        for j in range(row.shape[0]):
            target[j] = row[j] if valid is None or valid[j] else row.dtype.type(0)
    else:
        for j in range(row.shape[0]):
            value = row[j] if valid is None or valid[j] else row.dtype.type(0)
            image.flat[start + j * image.column] = value


@kernel
def copy(a, out):
    """Copies as many values as ``out`` holds."""
    for j in range(out.shape[0]):
        out[j] = a[j]


@inlined
def scale_row(image, plane, i, begin, factor, out):
    """Copies a row's pixels from column ``begin`` on, times the factor."""
    start = place(image, plane, i, begin)
    if image.column == 1:
        row = image.flat[start : start + out.shape[0]]
        for j in range(out.shape[0]):
            out[j] = factor * out.dtype.type(row[j])
        prefetch(image.flat, start + ROWS_AHEAD * image.row, out.shape[0])
    else:
        for j in range(out.shape[0]):
            out[j] = factor * out.dtype.type(image.flat[start + j * image.column])


@kernel
def fill(value, count, out):
    """Sets the first values."""
    for j in range(count):
        out[j] = value


@kernel
def fill_where(valid, value, out):
    """Sets the values that are valid, and the others to zero."""
    for j in range(out.shape[0]):
        out[j] = value if valid[j] else out.dtype.type(0)


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


@contracted
def _contrasts(a, b, offset_d, half):
    """The difference and the total of two pixels, less their offsets.

    ``half`` is half of the total's offset, plus the pixel value that counts as zero. Nearly equal
    pixels have an exact difference, and pixels near to ``half`` an exact total.
    """
    return (a - b) - offset_d, (a - half) + (b - half)


@ordered
def representable(offset, low):
    """The offset of the total, rounded so that half of it plus ``low`` is a floating-point number.

    This number is subtracted from each pixel.
    """
    return (offset + (low + low)) - (low + low)


@inlined
def _combine(x, y, valid, offset_d, half, d, t):
    zero = d.dtype.type(0)
    for j in range(x.shape[0]):
        dj, tj = _contrasts(d.dtype.type(x[j]), d.dtype.type(y[j]), offset_d, half)
        # Chosen, not multiplied: a pixel that is not valid may be NaN.
        d[j] = dj if valid is None or valid[j] else zero
        t[j] = tj if valid is None or valid[j] else zero


@inlined
def load_row(
    x, y, plane, height, width, i, first, low, offset_d, offset_t, padding, valid, at, count, d, t,
):  # fmt: skip
    """Differences and totals of a row from column ``first`` on, each less its offset.

    There are ``count`` of each, written from ``at`` on. Unless ``valid``, which has the plane's
    rows, is ``None``, both are zero where it is false. The row that is needed `ROWS_AHEAD` rows
    later is prefetched.
    """
    here = shown_pixel(i, height, padding)
    if here < 0:
        fill(-offset_d, count, d[at:])
        fill(-offset_t, count, t[at:])
        return
    begin, end = max(first, 0), min(first + count, width)
    x_at, y_at = place(x, plane, here, begin), place(y, plane, here, begin)
    zero, half = d.dtype.type(0), d.dtype.type(0.5) * offset_t + low
    # The place of column 0 in the row.
    at -= first
    d_row, t_row = d[at + begin : at + end], t[at + begin : at + end]
    kept = None if valid is None else valid[here, begin:end]
    if x.column == 1 and y.column == 1:
        x_row, y_row = x.flat[x_at : x_at + end - begin], y.flat[y_at:]
        _combine(x_row, y_row, kept, offset_d, half, d_row, t_row)
        prefetch(x.flat, x_at + ROWS_AHEAD * x.row, end - begin)
        prefetch(y.flat, y_at + ROWS_AHEAD * y.row, end - begin)
    else:
        for j in range(end - begin):
            a = d.dtype.type(x.flat[x_at + j * x.column])
            b = d.dtype.type(y.flat[y_at + j * y.column])
            dj, tj = _contrasts(a, b, offset_d, half)
            d_row[j] = dj if kept is None or kept[j] else zero
            t_row[j] = tj if kept is None or kept[j] else zero
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


@ordered
def _difference_and_total(a, b, low):
    """The difference and the total of two pixels. To swap these only negates the difference."""
    return a - b, (a + b) - (low + low)


@kernel
def local_offsets(x, y, plane, top, bottom, left, right, low, length, valid):
    """The offsets of the difference and of the total, near to the values of most pixels of a task.

    They are weighted means of a few of its pixels. A pixel far from zero, in units of the range,
    has little weight: it would move the offset so far from all others that their variances cancel.
    Pixels that are not finite, or not valid, do not count.
    """
    sum_d = sum_t = weights = 0.0
    for i in range(top, bottom, max(1, (bottom - top) // 8)):
        for j in range(left, right, max(2, (right - left) // 16)):
            if valid is None or valid[i, j]:
                a = x.flat[x.starts[plane] + i * x.row + j * x.column]
                b = y.flat[y.starts[plane] + i * y.row + j * y.column]
                d, t = _difference_and_total(float(a), float(b), float(low))
                weight = 1 / (1 + (d * d + t * t) / (length * length))
                # It is zero for infinite values, and NaN for NaN.
                if weight > 0:
                    sum_d += weight * d
                    sum_t += weight * t
                    weights += weight
    if weights > 0:
        return sum_d / weights, sum_t / weights
    return 0.0, 0.0
