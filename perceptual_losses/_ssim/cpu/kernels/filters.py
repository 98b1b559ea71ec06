"""Sums under the window, along a row and down the rows of a ring, and mirrored borders."""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...._runtime.numba_kernels import inlined, kernel
from ...._runtime.vectors import INDEX, Vectors
from .images import copy

# Rows that are summed at once: their windows share most rows.
ROWS = 4


@inlined
def ring_slots(window):
    """The number of rows of a ring. A row of pixels has the slot ``row % slots``."""
    return len(window.extent) + ROWS - 1


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
    """Sums of the values.

    ``count`` is rounded up to whole vectors, and values after the last window may be read.
    """
    _sum_across(window, a, count, out)


@kernel
def sum_down(window, ring, begin, row, count, out):
    """The sums of `ROWS` rows, the first of which is ``row``.

    The ring with the rows under their windows begins at row ``begin`` of its memory. ``count`` is
    rounded up to whole vectors.
    """
    first = (row - len(window.extent) // 2) % ring_slots(window)
    _sum_down(window, ring, begin, first, count, out)


@kernel
def moments_down(window, ring, row, count, moments):
    """`sum_down` for each of the four moments, whose rows follow each other in both arrays."""
    for m in range(4):
        sum_down(window, ring, m * ring_slots(window), row, count, moments[m * ROWS :])


@kernel
def mirror_columns(row, begin, end, before, after):
    """Mirrors values ``begin`` to ``end`` of a row at both of its ends.

    ``before`` and ``after`` are the numbers of values that are written there.
    """
    for j in range(before):
        row[begin - 1 - j] = row[begin + j]
    for j in range(after):
        row[end + j] = row[end - 1 - j]


@kernel
def mirror_rows(ring, begin, slots, row, height, radius, count):
    """Mirrors the row that comes next into the ring, if it has a mirror image.

    A row near the upper end of the map, which is in the ring already, is copied to the slot of its
    mirror image above the map. A row below the map becomes a copy of the row that it mirrors.
    """
    if row < radius:
        shown, target = row, -1 - row
    elif row >= height:
        shown, target = 2 * height - 1 - row, row
    else:
        return
    copy(ring[begin + shown % slots], ring[begin + target % slots, :count])


def _taps(builder, vectors, kind, window):
    """The taps of the first half of a window and its centre, each spread over a vector."""
    place = kind.fields.index("taps")
    taps = vectors.array(kind[place], builder.extract_value(window, place))
    radius = len(kind[kind.fields.index("extent")]) // 2
    return [vectors.spread(taps.data, INDEX(k)) for k in range(radius + 1)]


def _sum_pairs(vectors, taps, values):
    """Sums under a symmetric window: values with equal weights are added first.

    For each sum, ``values`` has a list of the values under its window.
    """
    radius = len(taps) - 1
    sums = [vectors.multiply(taps[radius], under[radius]) for under in values]
    # The sums take turns, so that few values are in use at a time.
    for k in range(radius):
        for i, under in enumerate(values):
            pair = vectors.add(under[k], under[2 * radius - k])
            sums[i] = vectors.add(sums[i], vectors.multiply(taps[k], pair))
    return sums


@intrinsic
def _sum_across(typing_context, window, a, count, out):
    """`sum_across` in vector instructions."""

    def generate(context, builder, signature, arguments):
        kinds, (window, a, count, out) = signature.args, arguments
        vectors = Vectors(context, builder, kinds[1].dtype)
        source, target = vectors.array(kinds[1], a).data, vectors.array(kinds[3], out).data
        taps = _taps(builder, vectors, kinds[0], window)
        step = INDEX(vectors.lanes)
        with cgutils.for_range_slice(builder, INDEX(0), count, step) as (column, _):
            values = vectors.window(source, column, 2 * len(taps) - 1)
            (total,) = _sum_pairs(vectors, taps, [values])
            vectors.store(total, target, column)
        return context.get_dummy_value()

    return types.void(window, a, types.intp, out), generate


@intrinsic
def _sum_down(typing_context, window, ring, begin, first, count, out):
    """`sum_down` in vector instructions. The first window begins at slot ``first``."""

    def generate(context, builder, signature, arguments):
        kinds, (window, ring, begin, first, count, out) = signature.args, arguments
        vectors = Vectors(context, builder, kinds[1].dtype)
        memory, target = vectors.array(kinds[1], ring), vectors.array(kinds[5], out)
        taps = _taps(builder, vectors, kinds[0], window)
        size = 2 * len(taps) - 1
        slots = size + ROWS - 1
        rows = []
        for k in range(slots):
            slot = builder.add(first, INDEX(k))
            is_after = builder.icmp_signed(">=", slot, INDEX(slots))
            slot = builder.select(is_after, builder.sub(slot, INDEX(slots)), slot)
            rows.append(vectors.row(memory, builder.add(begin, slot)))
        outs = [vectors.row(target, INDEX(i)) for i in range(ROWS)]
        step = INDEX(vectors.lanes)
        with cgutils.for_range_slice(builder, INDEX(0), count, step) as (column, _):
            values = [vectors.load(row, column) for row in rows]
            sums = _sum_pairs(vectors, taps, [values[i : i + size] for i in range(ROWS)])
            for total, place in zip(sums, outs, strict=True):
                vectors.store(total, place, column)
        return context.get_dummy_value()

    place = types.intp, types.intp
    return types.void(window, ring, *place, types.intp, out), generate
