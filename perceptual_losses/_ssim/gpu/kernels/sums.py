"""Compensated sums of tiles, and the result of all of them.

Sums are of 1 - S, with the roundings that they lost: a small mean of S, as 1 minus that of 1 - S,
would have few digits without, and for identical images it is exactly 1.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from .arguments import Totals


@triton.jit
def zeros(K: tl.constexpr):
    """A zero for each thread."""
    LANES: tl.constexpr = K.LANES
    return tl.zeros((LANES,), tl.float32)


@triton.jit
def select_columns(columns, first, begin, end):
    """Each thread's columns from ``begin`` on and before ``end``, zero for the others."""
    selected = ()
    for e in tl.static_range(len(columns)):
        inside = (first + e >= begin) & (first + e < end)
        selected = selected + (tl.where(inside, columns[e], 0.0),)
    return selected


@triton.jit
def _add(a, a_rest, b, b_rest):
    """A sum, and the roundings that its terms lost."""
    total = a + b
    b_part = total - a
    return total, a_rest + b_rest + ((a - (total - b_part)) + (b - b_part))


@triton.jit
def store_sum(columns, address, last, factor, weight_total, DEFICIT: tl.constexpr):
    """Writes a tile's sum and the roundings that it lost; or the mean, of a tile that is all of its
    plane.

    Args:
        columns: sums of each thread, by column.
        address: where to.
        last: whether nobody writes the sum after this one, which has to be zero; or ``None``.
        factor: the number by which the sum is multiplied.
        weight_total: the sum of all weights, or 0 where sums are added up later.
        DEFICIT: whether the sum is one of 1 - S.
    """
    total, rest = columns[0], tl.zeros_like(columns[0])
    for e in tl.static_range(1, len(columns)):
        total, rest = _add(total, rest, columns[e], tl.zeros_like(total))
    total, rest = tl.reduce((total, rest), 0, _add)
    if weight_total == 0 and last is not None:
        tl.store(address + 2, 0.0, mask=last)
        tl.store(address + 3, 0.0, mask=last)
    _store(factor * total, factor * rest, address, weight_total, DEFICIT)


@triton.jit
def store_sum_of_tiles(tiles, count, address, weight_total, K: tl.constexpr):
    """`store_sum` for the sum of so many tiles' sums, which are not of 1 - S."""
    total, rest = _sum_tiles(tiles, count, K.LANES)
    _store(total, rest, address, weight_total, False)


@triton.jit
def _store(total, rest, address, weight_total, DEFICIT: tl.constexpr):
    """Writes a sum and the roundings that it lost, or the mean."""
    if weight_total == 0:
        tl.store(address, total)
        tl.store(address + 1, rest)
    else:
        tl.store(address, _mean(total, rest, weight_total, DEFICIT))


@triton.jit
def _mean(total, rest, weight_total, DEFICIT: tl.constexpr):
    """The mean from a sum and the roundings that it lost; exactly 1 where no 1 - S is more than
    0.
    """
    value = (weight_total - total) - rest if DEFICIT else total + rest
    # A plain division may miss 1 by a bit.
    mean = tl.div_rn(value, weight_total)
    if DEFICIT:
        # Reciprocals and weights have roundings.
        mean = tl.clamp(mean, -1.0, 1.0, tl.PropagateNan.ALL)
    return mean


@triton.jit
def _sum_tiles(sums, count, LANES: tl.constexpr):
    """The sum of so many tiles' sums, and the roundings that it lost."""
    total = tl.zeros((LANES,), tl.float32)
    rest = tl.zeros((LANES,), tl.float32)
    first = 0
    while first < count:
        # Several are on their way at once.
        for k in tl.static_range(8):
            tile = first + k * LANES + tl.arange(0, LANES)
            more = tl.load(sums + 2 * tile, mask=tile < count, other=0)
            more_rest = tl.load(sums + 2 * tile + 1, mask=tile < count, other=0)
            total, rest = _add(total, rest, more, more_rest)
        first += 8 * LANES
    return tl.reduce((total, rest), 0, _add)


@triton.jit
def _result(
    sums,
    abs_difference_sums,
    totals,
    LANES: tl.constexpr,
    LOSS: tl.constexpr,
    MIXED: tl.constexpr,
):
    """The mean of S from tiles' sums of 1 - S, exactly 1 for identical images; or 1 minus that, for
    a ``LOSS``, which may be ``MIXED`` with the mean of |x - y| from ``abs_difference_sums``.
    """
    total, rest = _sum_tiles(sums, totals.tiles, LANES)
    value = _mean(total, rest, totals.weights, True)
    if LOSS:
        value = 1 - value
    if MIXED:
        total, rest = _sum_tiles(abs_difference_sums, totals.tiles, LANES)
        value = totals.structural * value + totals.l1 * _mean(total, rest, totals.pixels, False)
    return value


@triton.jit
def sum_in_last_program(sums, abs_difference_sums, result, arrived, totals, K: tl.constexpr):
    """Writes the result of all programs' sums, in whichever program is the last one to come here.

    ``arrived`` counts them: it is zero before a launch, and afterwards again.
    """
    # The barrier orders the sums of this program's threads before the count, and the count orders
    # those of all programs that were counted earlier before the reads below.
    tl.debug_barrier()
    before = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    if before == tl.num_programs(0) - 1:
        tl.store(arrived, 0)
        MIXED: tl.constexpr = K.ABS_DIFFERENCE
        value = _result(sums, abs_difference_sums, totals, K.LANES, K.LOSS, MIXED)
        tl.store(result, value)


@triton.jit(do_not_specialize=["planes", "pitch"])
def reduce_tiles_kernel(
    sums,
    means,
    counts,
    weight_totals,
    planes,
    pitch,
    structural,
    l1,
    LANES: tl.constexpr,
    ABS_DIFFERENCE: tl.constexpr,
    LOSS: tl.constexpr,
    MIXED: tl.constexpr,
):
    """The means of S from the tiles' sums of 1 - S, exactly 1 for identical images; or 1 less them,
    for a ``LOSS``.

    ``counts`` are the numbers of tiles at each level, where ``weight_totals`` are the sums of all
    weights. A level's sums are a row of ``pitch`` values for each plane. With ``ABS_DIFFERENCE``
    the last level's are those of |x - y|; a loss is ``MIXED`` with their mean, ``structural`` and
    ``l1`` being the factors.
    """
    place = tl.program_id(0)
    count, weight_total = counts[0], weight_totals[0]
    for j in tl.static_range(1, len(counts)):
        count = tl.where(place >= j * planes, counts[j], count)
        weight_total = tl.where(place >= j * planes, weight_totals[j], weight_total)
    sums += place.to(tl.int64) * pitch
    if ABS_DIFFERENCE and not MIXED:
        total, rest = _sum_tiles(sums, count, LANES)
        similarity = _mean(total, rest, weight_total, True)
        abs_difference = _mean(total, rest, weight_total, False)
        is_last = place >= (len(counts) - 1) * planes
        value = tl.where(is_last, abs_difference, similarity)
    else:
        abs_difference_sums = sums + tl.cast(planes, tl.int64) * pitch
        pixels = weight_totals[len(weight_totals) - 1]
        totals = Totals(count, weight_total, pixels, structural, l1)
        value = _result(sums, abs_difference_sums, totals, LANES, LOSS, MIXED)
    tl.store(means + place, value)
