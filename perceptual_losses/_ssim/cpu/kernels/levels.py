"""Halved images, the sum of the levels' gradients, and the mean of |x - y|.

The last three arguments of each kernel are those that `in_threads` passes: the rows of all planes
``begin`` to ``end``, and the number of the share, which none of them needs.
"""

from ...._runtime.numba_kernels import entry, inlined, kernel, ordered
from .formulas import add_signs, signed
from .images import place


@entry
def halve(x, y, x_half, y_half, size, begin, end, share):
    """2x2 (2x2x2) means of both images. Rows are those of the halves, whose columns are dense."""
    _halve_rows(x, x_half, size, begin, end)
    _halve_rows(y, y_half, size, begin, end)


@kernel
def _halve_rows(image, out, size, begin, end):
    slices, height, width = size
    half_slices, rows, columns = (slices + 1) // 2, (height + 1) // 2, (width + 1) // 2
    half = out.flat.dtype.type(0.5)
    for index in range(begin, end):
        plane = index // rows
        i = index - plane * rows
        start = place(out, plane, i, 0)
        row = out.flat[start : start + columns]
        volume = plane // half_slices
        front = 2 * (plane - volume * half_slices)
        # To count an odd last slice twice would change no mean. An image has only one slice.
        for z in range(front, min(front + 2, slices)):
            upper = image.flat[place(image, volume * slices + z, 2 * i, 0) :]
            lower = image.flat[place(image, volume * slices + z, min(2 * i + 1, height - 1), 0) :]
            if image.column == 1:
                _halve_row(upper, lower, 1, width, half, z == front, row)
            else:
                _halve_row(upper, lower, image.column, width, half, z == front, row)


@inlined
def _halve_row(upper, lower, step, width, half, is_first, out):
    """Means of two rows of a slice, or the means of these and the other slice's in ``out``."""
    for j in range(width // 2):
        left, right = 2 * j * step, (2 * j + 1) * step
        mean = _mean_of_four(
            out.dtype.type(upper[left]),
            out.dtype.type(lower[left]),
            out.dtype.type(upper[right]),
            out.dtype.type(lower[right]),
            half,
        )
        out[j] = mean if is_first else half * (out[j] + mean)
    if width % 2:
        last = (width - 1) * step
        mean = half * (out.dtype.type(upper[last]) + out.dtype.type(lower[last]))
        out[-1] = mean if is_first else half * (out[-1] + mean)


@ordered
def _mean_of_four(a, b, c, d, half):
    return half * (half * (a + b) + half * (c + d))


@entry
def accumulate_level(gradient, size, factors, coarse, begin, end, share):
    """Scales rows of a level's gradient and adds what the next coarser level sends back.

    ``factors`` has a number for each plane, or for each volume. ``coarse`` is ``(planes, h, w)``,
    where each slice of a volume is a plane, or ``None`` to only scale.
    """
    slices, height, width = size
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        start = place(gradient, plane, i, 0)
        factor = factors[plane // slices]
        if coarse is None:
            _scale(gradient, start, width, factor)
        else:
            # Along each axis a coarse pixel has two pixels, and only one at an odd end.
            z = plane % slices
            fraction = 0.5 * _fraction(i, height) * _fraction(z, slices)
            row = coarse[plane // slices * ((slices + 1) // 2) + z // 2, i // 2]
            fraction = coarse.dtype.type(fraction)
            if gradient.column == 1:
                here = gradient.flat[start : start + width]
                _scale_and_spread(row, fraction, factor, here)
            else:
                for j in range(width):
                    at = start + j * gradient.column
                    sent = row[j // 2] * fraction
                    if j == width - 1 and width % 2:
                        sent += sent
                    gradient.flat[at] = gradient.flat[at] * factor + sent


@inlined
def _fraction(index, size):
    return 1.0 if index == size - 1 and size % 2 else 0.5


@kernel
def _scale(image, start, count, factor):
    if image.column == 1:
        row = image.flat[start : start + count]
        for j in range(count):
            row[j] *= factor
    else:
        for j in range(count):
            image.flat[start + j * image.column] *= factor


@kernel
def _scale_and_spread(coarse, fraction, factor, a):
    for j in range(a.shape[0] // 2):
        sent = coarse[j] * fraction
        a[2 * j] = a[2 * j] * factor + sent
        a[2 * j + 1] = a[2 * j + 1] * factor + sent
    if a.shape[0] % 2:
        a[-1] = a[-1] * factor + coarse[-1] * (fraction + fraction)


@entry
def abs_difference(x, y, size, zero, sums, begin, end, share):
    """Sums of ``|x - y|`` over each row, in the dtype of ``zero``."""
    _, height, width = size
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        x_at, y_at = place(x, plane, i, 0), place(y, plane, i, 0)
        if x.column == 1 and y.column == 1:
            sums[index] = _sum_of_differences(x.flat[x_at : x_at + width], y.flat[y_at:], zero)
        else:
            total = 0.0
            for j in range(width):
                a, b = x.flat[x_at + j * x.column], y.flat[y_at + j * y.column]
                total += abs((zero + a) - (zero + b))
            sums[index] = total


@kernel
def _sum_of_differences(x, y, zero):
    total = zero
    for j in range(x.shape[0]):
        total += abs((zero + x[j]) - (zero + y[j]))
    return total


@entry
def add_sign(gradient, x, y, size, scale, begin, end, share):
    """Adds ``scale`` of each plane times the sign of ``x - y`` to rows of the gradient."""
    slices, height, width = size
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        at, x_at, y_at = (
            place(gradient, plane, i, 0),
            place(x, plane, i, 0),
            place(y, plane, i, 0),
        )
        step = scale[plane // slices]
        if gradient.column == 1 and x.column == 1 and y.column == 1:
            add_signs(x.flat[x_at:], y.flat[y_at:], step, gradient.flat[at : at + width])
        else:
            for j in range(width):
                d = gradient.flat.dtype.type(x.flat[x_at + j * x.column])
                d -= gradient.flat.dtype.type(y.flat[y_at + j * y.column])
                gradient.flat[at + j * gradient.column] += signed(step, d)
