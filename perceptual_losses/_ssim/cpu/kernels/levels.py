"""Halved images, the sum of the levels' gradients, and the mean of |x - y|."""

from ...._runtime.numba_kernels import entry, kernel
from .formulas import add_signs, signed
from .images import gather, place, store_row


@entry
def halve(image, shape, begin, end, rows, out):
    """2x2 means: rows ``begin`` to ``end`` of all planes of ``out``, ``(planes, h, w)``."""
    height, width = shape[2], shape[3]
    for index in range(begin, end):
        plane = index // out.shape[1]
        i = index - plane * out.shape[1]
        upper = place(image, plane, 2 * i, 0)
        lower = place(image, plane, min(2 * i + 1, height - 1), 0)
        if image.column == 1:
            _mean(image.flat[upper : upper + width], image.flat[lower : lower + width], rows[0])
        else:
            gather(image, upper, rows[0])
            gather(image, lower, rows[1])
            _mean(rows[0], rows[1], rows[0])
        _halve_row(rows[0, :width], out[plane, i])


@kernel
def _mean(a, b, out):
    half = out.dtype.type(0.5)
    for j in range(a.shape[0]):
        out[j] = half * (a[j] + b[j])


@kernel
def _halve_row(row, out):
    half = out.dtype.type(0.5)
    for j in range(row.shape[0] // 2):
        out[j] = half * (row[2 * j] + row[2 * j + 1])
    if row.shape[0] % 2:
        out[-1] = row[-1]


@entry
def accumulate_level(gradient, shape, factors, coarse, begin, end, row):
    """Scales rows of a level's gradient and adds what the next coarser level sends back.

    ``factors`` has a number for each plane; ``coarse`` is ``(planes, h, w)``.
    """
    height, width = shape[2], shape[3]
    dtype = coarse.dtype.type
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        start = place(gradient, plane, i, 0)
        # A pixel is one of four under a coarse one, in an odd last row one of two.
        fraction = dtype(0.5 if i == height - 1 and height % 2 else 0.25)
        if gradient.column == 1:
            here = gradient.flat[start : start + width]
            _scale_and_spread(coarse[plane, i // 2], fraction, factors[plane], here)
        else:
            gather(gradient, start, row[:width])
            _scale_and_spread(coarse[plane, i // 2], fraction, factors[plane], row[:width])
            store_row(gradient, plane, i, 0, width, row)


@kernel
def _scale_and_spread(coarse, fraction, factor, a):
    for j in range(a.shape[0] // 2):
        sent = coarse[j] * fraction
        a[2 * j] = a[2 * j] * factor + sent
        a[2 * j + 1] = a[2 * j + 1] * factor + sent
    if a.shape[0] % 2:
        a[-1] = a[-1] * factor + coarse[-1] * (fraction + fraction)


@entry
def abs_difference(x, y, height, width, begin, end, out):
    """Sums of ``|x - y|`` over each of rows ``begin`` to ``end`` of all planes."""
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        x_at, y_at = place(x, plane, i, 0), place(y, plane, i, 0)
        if x.column == 1 and y.column == 1:
            out[index] = _sum_of_differences(x.flat[x_at : x_at + width], y.flat[y_at:])
        else:
            total = 0.0
            for j in range(width):
                total += abs(x.flat[x_at + j * x.column] - y.flat[y_at + j * y.column])
            out[index] = total


@kernel
def _sum_of_differences(x, y):
    total = x.dtype.type(0)
    for j in range(x.shape[0]):
        total += abs(x[j] - y[j])
    return total


@entry
def add_sign(gradient, x, y, scale, height, width, begin, end):
    """Adds ``scale`` of each plane times the sign of ``x - y`` to rows of the gradient."""
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        at, x_at, y_at = (
            place(gradient, plane, i, 0),
            place(x, plane, i, 0),
            place(y, plane, i, 0),
        )
        if gradient.column == 1 and x.column == 1 and y.column == 1:
            add_signs(x.flat[x_at:], y.flat[y_at:], scale[plane], gradient.flat[at : at + width])
        else:
            for j in range(width):
                d = x.flat[x_at + j * x.column] - y.flat[y_at + j * y.column]
                gradient.flat[at + j * gradient.column] += signed(scale[plane], d)
