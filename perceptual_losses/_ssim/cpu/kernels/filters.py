"""Sums under the window: along a row, and down the rows of a ring."""

from ...._runtime.numba_kernels import kernel
from .constants import SYMMETRIC


@kernel
def _moments_across(extent, window, a, count, mean, square):
    """Sums of the values and of their squares, each value loaded and weighed once."""
    for j in range(count):
        weighed = window[0] * a[j]
        first = weighed
        second = weighed * a[j]
        for k in range(1, len(extent)):
            weighed = window[k] * a[j + k]
            first += weighed
            second += weighed * a[j + k]
        mean[j] = first
        square[j] = second


@kernel
def _sum_across(extent, window, a, count, out):
    for j in range(count):
        total = window[0] * a[j]
        for k in range(1, len(extent)):
            total += window[k] * a[j + k]
        out[j] = total


@kernel
def _sum_down(extent, taps, ring, begin, count, upper, lower):
    """Two rows at once from a ring one row longer than the window: half the loads."""
    for j in range(count):
        value = ring[begin, j]
        first = taps[0, 0] * value
        second = taps[1, 0] * value
        for k in range(1, len(extent) + 1):
            value = ring[begin + k, j]
            first += taps[0, k] * value
            second += taps[1, k] * value
        upper[j] = first
        lower[j] = second


@kernel
def _mirror_columns(window, derivative, at, first, last, width, out):
    """Adds what mirrored columns beside the image send back to the pixels that they show.

    From ``at`` on ``derivative`` begins a radius before column ``first``, at which ``out`` begins;
    ``last`` ends it.
    """
    radius = window.shape[0] // 2
    for side in range(2):
        begin = first if side == 0 else max(width - radius, first)
        end = min(radius, last) if side == 0 else last
        for column in range(begin, end):
            image = -1 - column if side == 0 else 2 * width - 1 - column
            for k in range(window.shape[0]):
                source = image + k - radius
                if 0 <= source < width:
                    sent = derivative[at + source - first + radius]
                    out[at + column - first] += window[k] * sent


@kernel
def _add_taps(window, row, begin, end, scale, taps):
    """Adds the window around a row to the weights of a ring's slots, for rows in it alone."""
    size = window.shape[0]
    slot = (row - size // 2) % (size + 1)
    for k in range(size):
        if begin <= row + k - size // 2 < end:
            taps[slot] += scale * window[k]
        slot = slot + 1 if slot < size else 0


@kernel
def _add_images(window, row, size, begin, end, padding, scale, taps):
    """`_add_taps` for a row of the gradient, and for what lies beside the map and shows it."""
    radius = window.shape[0] // 2
    for side in range(3 if padding == SYMMETRIC else 1):
        image = row
        if side > 0:
            image = -1 - row if side == 1 else 2 * size - 1 - row
        if -radius <= image < size + radius:
            _add_taps(window, image, begin, end, scale, taps)
