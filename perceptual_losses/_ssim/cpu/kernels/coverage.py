"""The windows' weight over the pixels that exist."""

from ...._runtime.numba_kernels import kernel
from .arguments import ZEROS
from .filters import ROWS, sum_across, sum_down
from .images import fill, shown_pixel
from .prefetch import ROWS_AHEAD, prefetch


@kernel
def weights_across(window, valid, plane, planes, channels, i, first, padding, count, row, out):
    """Horizontal sums of the valid pixels of row ``i``, for planes side by side.

    Each has ``count`` columns, from column ``first`` on. ``valid`` is boolean, ``(N, H, W)``.
    Pixels that the padding with zeros adds are valid. ``row`` is scratch memory.
    """
    height, width = valid.shape[1:]
    zero, one = row.dtype.type(0), row.dtype.type(1)
    outside = one if padding == ZEROS else zero
    here = shown_pixel(i, height, padding)
    begin, end = max(first, 0), min(first + count, width)
    for p in range(planes):
        numbers = row[p * count : (p + 1) * count]
        if here < 0:
            fill(outside, count, numbers)
            continue
        pixels, own = valid[(plane + p) // channels, here, begin:end], numbers[begin - first :]
        for j in range(end - begin):
            own[j] = one if pixels[j] else zero
        prefetch(pixels, ROWS_AHEAD * width, end - begin)
        for side in range(2):
            beside = range(first, begin) if side == 0 else range(end, first + count)
            for j in beside:
                column = shown_pixel(j, width, padding)
                numbers[j - first] = outside if column < 0 else numbers[column - first]
    # A part of the row beyond the planes is summed too, and not used.
    sum_across(window, row, out.shape[0], out)


@kernel
def inverse_coverage(window, ring, row, constants, count, out):
    """The reciprocals of `ROWS` rows of weights, zero for those not above ``constants.least``."""
    sum_down(window, ring, 0, row, count, out)
    zero, one = out.dtype.type(0), out.dtype.type(1)
    for i in range(ROWS):
        for j in range(count):
            out[i, j] = one / out[i, j] if out[i, j] > constants.least else zero
