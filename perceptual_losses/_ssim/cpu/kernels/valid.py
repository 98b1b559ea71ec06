"""The pyramid over valid pixels: halved images, and the sum of the levels' gradients.

The last three arguments of each kernel are those that `in_threads` passes, as in `levels`.
``valid`` is ``(N, H, W)`` and boolean. What lies elsewhere is not read.
"""

from ...._runtime.numba_kernels import entry, inlined, kernel
from .images import place


@entry
def halve_valid(x, y, x_half, y_half, valid, channels, size, begin, end, share):
    """Means of both images over the valid pixels of 2x2, zero where there is none."""
    _halve_rows(x, x_half, valid, channels, size, begin, end)
    _halve_rows(y, y_half, valid, channels, size, begin, end)


@kernel
def _halve_rows(image, out, valid, channels, size, begin, end):
    _, height, width = size
    rows, columns = (height + 1) // 2, (width + 1) // 2
    zero = out.flat.dtype.type(0)
    for index in range(begin, end):
        plane = index // rows
        i = index - plane * rows
        here, start = valid[plane // channels], place(out, plane, i, 0)
        for j in range(columns):
            total, count = zero, 0
            for k in range(2 * i, min(2 * i + 2, height)):
                for m in range(2 * j, min(2 * j + 2, width)):
                    if here[k, m]:
                        total += image.flat[place(image, plane, k, m)]
                        count += 1
            out.flat[start + j] = total / out.flat.dtype.type(max(count, 1))


@entry
def accumulate_valid(gradient, size, factors, coarse, valid, channels, begin, end, share):
    """Scales rows of a level's gradient, and adds to each valid pixel its part of the next coarser.

    ``factors`` has a number for each plane, ``coarse`` is ``(planes, h, w)``.
    """
    _, height, width = size
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        here, start = valid[plane // channels], place(gradient, plane, i, 0)
        for j in range(width):
            at = start + j * gradient.column
            sent = coarse.dtype.type(0)
            if here[i, j]:
                sent = coarse[plane, i // 2, j // 2] / _num_valid(here, i // 2, j // 2, coarse)
            gradient.flat[at] = gradient.flat[at] * factors[plane] + sent


@inlined
def _num_valid(valid, i, j, coarse):
    """The number of valid pixels under a coarse one, in the dtype of ``coarse``."""
    count = 0
    for k in range(2 * i, min(2 * i + 2, valid.shape[0])):
        for m in range(2 * j, min(2 * j + 2, valid.shape[1])):
            count += valid[k, m]
    return coarse.dtype.type(count)
