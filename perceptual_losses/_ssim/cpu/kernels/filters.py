"""Sums under the window: along a row, and down the rows of a ring."""

from ...._runtime.numba_kernels import inlined, kernel
from .arguments import SYMMETRIC

# The longest window whose rows one loop adds up. LLVM does not vectorize a loop over 21 rows, and
# one over 19 is no faster than pairs of rows.
LONG = 17


@kernel
def moments_across(window, a, count, mean, square):
    """Sums of the values and of their squares, each value loaded and weighed once."""
    for j in range(count):
        weighed = window.taps[0] * a[j]
        first = weighed
        second = weighed * a[j]
        for k in range(1, len(window.extent)):
            weighed = window.taps[k] * a[j + k]
            first += weighed
            second += weighed * a[j + k]
        mean[j] = first
        square[j] = second


@kernel
def sum_across(window, a, count, out):
    """Sums of the values."""
    for j in range(count):
        total = window.taps[0] * a[j]
        for k in range(1, len(window.extent)):
            total += window.taps[k] * a[j + k]
        out[j] = total


@kernel
def sum_down(window, slot_taps, ring, begin, count, upper, lower):
    """Sums of two rows at once from a ring one row longer than the window: half the loads.

    ``slot_taps`` has for each of the two rows the weight of each slot of the ring, which begins at
    row ``begin``.
    """
    if len(window.extent) > LONG:
        _sum_down_in_pairs(slot_taps, ring, begin, len(window.extent) + 1, count, upper, lower)
        return
    for j in range(count):
        value = ring[begin, j]
        first = slot_taps[0, 0] * value
        second = slot_taps[1, 0] * value
        for k in range(1, len(window.extent) + 1):
            value = ring[begin + k, j]
            first += slot_taps[0, k] * value
            second += slot_taps[1, k] * value
        upper[j] = first
        lower[j] = second


@kernel
def _sum_down_in_pairs(slot_taps, ring, begin, slots, count, upper, lower):
    """`sum_down` for long windows: two rows of the ring at a time, whose number is even."""
    for k in range(0, slots, 2):
        zero = ring.dtype.type(0)
        for j in range(count):
            a, b = ring[begin + k, j], ring[begin + k + 1, j]
            first, second = (upper[j], lower[j]) if k > 0 else (zero, zero)
            upper[j] = first + slot_taps[0, k] * a + slot_taps[0, k + 1] * b
            lower[j] = second + slot_taps[1, k] * a + slot_taps[1, k + 1] * b


@inlined
def is_finite_row(ring, slot, slots, count):
    """Whether the squares of both images are finite in a slot of the ring."""
    squares = ring.dtype.type(0)
    for m in range(2, 4):
        for j in range(count):
            squares += ring[m * slots + slot, j]
    return squares - squares == 0


@inlined
def unshared_rows_spoil(is_finite, row, size):
    """Whether `sum_down` may spoil rows ``row`` and ``row + 1`` of the map.

    The first row of the upper window is none of the lower one, and the last row of the lower one is
    none of the upper one. ``is_finite`` says of each slot of the ring whether its row is finite.
    """
    first = row - size // 2
    return is_finite[first % (size + 1)] == 0 or is_finite[(first + size) % (size + 1)] == 0


@kernel
def moments_down(window, slot_taps, ring, row, count, apart, moments):
    """Sums of rows ``row`` and ``row + 1`` of the map for each of the four moments.

    If ``apart`` is true, each row's sums are its own: where a row that one window does not hold is
    NaN, `sum_down` would spoil the window by multiplying it by zero. With ``None``, nothing is
    compiled for that.
    """
    slots = len(window.extent) + 1
    for m in range(4):
        upper, lower = moments[2 * m], moments[2 * m + 1]
        if apart is None or not apart:
            sum_down(window, slot_taps, ring, m * slots, count, upper, lower)
        else:
            first = row - len(window.extent) // 2
            sum_down_row(window, ring, m * slots, first, count, upper)
            sum_down_row(window, ring, m * slots, first + 1, count, lower)


@kernel
def sum_down_row(window, ring, begin, first, count, out):
    """Sums of one row of the map, whose window begins at row ``first``, from a ring of rows."""
    slots = len(window.extent) + 1
    if len(window.extent) > LONG:
        for k in range(len(window.extent)):
            row = ring[begin + (first + k) % slots]
            for j in range(count):
                before = out[j] if k > 0 else out.dtype.type(0)
                out[j] = before + window.taps[k] * row[j]
        return
    for j in range(count):
        total = window.taps[0] * ring[begin + first % slots, j]
        for k in range(1, len(window.extent)):
            total += window.taps[k] * ring[begin + (first + k) % slots, j]
        out[j] = total


@kernel
def mirror_columns(window, derivative, at, first, last, width, out):
    """Adds what mirrored columns beside the image send back to the pixels that they show.

    ``out[at]`` is column ``first``, and ``derivative[at]`` the column a radius before it. ``last``
    is the first column after the end.
    """
    size = window.taps.shape[0]
    radius = size // 2
    for side in range(2):
        begin = first if side == 0 else max(width - radius, first)
        end = min(radius, last) if side == 0 else last
        for column in range(begin, end):
            image = -1 - column if side == 0 else 2 * width - 1 - column
            for k in range(size):
                source = image + k - radius
                if 0 <= source < width:
                    sent = derivative[at + source - first + radius]
                    out[at + column - first] += window.taps[k] * sent


@kernel
def add_taps(window, row, begin, end, scale, slot_taps):
    """Adds the window around a row to the weights of a ring's slots, if their rows are in range.

    The range is from ``begin`` to ``end``.
    """
    size = window.taps.shape[0]
    slot = (row - size // 2) % (size + 1)
    for k in range(size):
        if begin <= row + k - size // 2 < end:
            slot_taps[slot] += scale * window.taps[k]
        slot = slot + 1 if slot < size else 0


@kernel
def add_mirrored_taps(window, row, size, begin, end, padding, scale, slot_taps):
    """`add_taps` for a row of the gradient, and for the rows beside the image that show it."""
    radius = window.taps.shape[0] // 2
    for side in range(3 if padding == SYMMETRIC else 1):
        image = row
        if side > 0:
            image = -1 - row if side == 1 else 2 * size - 1 - row
        if -radius <= image < size + radius:
            add_taps(window, image, begin, end, scale, slot_taps)
