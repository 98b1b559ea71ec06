"""Triton kernels of the GPU path for MS-SSIM's levels: halved images, the coarser levels in one
launch, the product of the levels' means and the sum of their gradients.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from .fused import VALID, Constants, Image, _place, _plane, derive, march

FLOOR = tl.constexpr(0)
RELU = tl.constexpr(1)
SIMPLE = tl.constexpr(2)
PLAIN = tl.constexpr(3)
# Columns, as many as are one access in half precision.
AT_ONCE = tl.constexpr(8)


@triton.jit
def _raised(base, exponent):
    """A power, of negative numbers too where it is a whole one."""
    size = tl.exp2(exponent * tl.log2(tl.abs(base)))
    half = 0.5 * exponent
    signed = tl.where(half == tl.floor(half), size, -size)
    signed = tl.where(exponent == tl.floor(exponent), signed, float("nan"))
    power = tl.where(base < 0, signed, size)
    # The logarithm of zero times zero is not what its power is.
    return tl.where(exponent == 0, 1.0, tl.where(exponent == 1, base, power))


@triton.jit
def _power(mean, exponent, floor, NORMALIZE: tl.constexpr):
    """A level's factor in the product, and its derivative."""
    base, slope = mean, tl.full(mean.shape, 1.0, tl.float32)
    if NORMALIZE == FLOOR:
        below = floor * floor / (2 * floor - tl.minimum(mean, floor))
        base = tl.where(mean <= floor, below, mean)
        slope = tl.where(mean <= floor, below * below / (floor * floor), 1.0)
    elif NORMALIZE == SIMPLE:
        base, slope = 0.5 * (mean + 1), 0.5 * slope
    elif NORMALIZE == RELU:
        dead = mean <= 0
        base, slope = tl.where(dead, 1.0, mean), tl.where(dead, 0.0, 1.0)
    factor = _raised(base, exponent)
    derivative = exponent * _raised(base, exponent - 1)
    if NORMALIZE == RELU:
        factor = tl.where(dead, 0.0, factor)
    return factor, tl.where(exponent == 0, 0.0, derivative * slope)


@triton.jit(do_not_specialize=["exponents", "floor", "planes"])
def product(
    means,
    value,
    derivatives,
    exponents,
    floor,
    planes,
    structural,
    l1,
    NORMALIZE: tl.constexpr,
    LANES: tl.constexpr,
    TOTAL: tl.constexpr,
    LOSS: tl.constexpr,
    MIXED: tl.constexpr,
):
    """The product over the levels of their means' powers, and its derivatives by the means.

    ``means`` and ``derivatives`` are of ``planes`` for each level. For the ``TOTAL`` of all planes
    one program writes their mean, or 1 less that for a ``LOSS``; or of a loss ``MIXED`` with the
    mean of the last row of ``means``, ``structural`` and ``l1`` times, and the derivatives of that.
    """
    first = tl.program_id(0) * LANES
    total = tl.zeros((LANES,), tl.float32)
    apart = tl.zeros((LANES,), tl.float32)
    while first < planes:
        plane = first + tl.arange(0, LANES)
        inside = plane < planes
        factors, slopes = (), ()
        for j in tl.static_range(len(exponents)):
            mean = tl.load(means + j * planes + plane, mask=inside, other=1)
            factor, slope = _power(mean, exponents[j], floor, NORMALIZE)
            factors = factors + (factor,)
            slopes = slopes + (slope,)
        whole = factors[0]
        for j in tl.static_range(1, len(exponents)):
            whole *= factors[j]
        if TOTAL:
            total += tl.where(inside, whole, 0.0)
        for j in tl.static_range(len(exponents)):
            # Not the whole product divided by the factor, which can be zero.
            derivative = slopes[j]
            for k in tl.static_range(len(exponents)):
                if k != j:
                    derivative *= factors[k]
            if MIXED:
                derivative *= structural
            tl.store(derivatives + j * planes + plane, derivative, mask=inside)
        if MIXED:
            last_row = len(exponents) * planes + plane
            distance = tl.load(means + last_row, mask=inside, other=0)
            apart += distance
            share = l1 / planes.to(tl.float32) if TOTAL else l1
            tl.store(derivatives + last_row, tl.zeros_like(apart) + share, mask=inside)
            whole = structural * (1 - whole) + l1 * distance
        if not TOTAL:
            tl.store(value + plane, whole, mask=inside)
        first += LANES * tl.num_programs(0)
    if TOTAL:
        found = tl.div_rn(tl.sum(total, 0), planes.to(tl.float32))
        if LOSS:
            found = 1 - found
        if MIXED:
            found = structural * found + l1 * (tl.sum(apart, 0) / planes.to(tl.float32))
        tl.store(value, found)


@triton.jit(do_not_specialize=["strips", "bands", "channels", "height", "width"])
def pyramid(
    x,
    y,
    x_halves,
    y_halves,
    pitches,
    x_strides,
    y_strides,
    strips,
    bands,
    channels,
    height,
    width,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Repeated 2x2 means of both images, an odd last row or column counting twice.

    ``x_halves`` and ``y_halves`` are of the levels that a tile gives, each of whole rows of as many
    values as ``pitches`` has. Rows are ``WHOLE`` if they are made of `AT_ONCE` columns.
    """
    width = width // AT_ONCE * AT_ONCE if WHOLE else width
    strip, band, plane = _place(tl.program_id(0), strips, bands)
    row = (band * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = (strip * LANES + tl.arange(0, LANES)[None, :]).to(tl.int64)
    inside = (row < height) & (column < width)
    a = (
        _plane(Image(x, x_strides), plane, channels).address
        + row * x_strides[2]
        + column * x_strides[3]
    )
    b = (
        _plane(Image(y, y_strides), plane, channels).address
        + row * y_strides[2]
        + column * y_strides[3]
    )
    a = tl.load(a, mask=inside, other=0).to(tl.float32)
    b = tl.load(b, mask=inside, other=0).to(tl.float32)
    for j in tl.static_range(len(pitches)):
        top, left = band * (ROWS >> j), strip * (LANES >> j)
        a = _halve(a, top, left, height, width, ROWS >> j, LANES >> j)
        b = _halve(b, top, left, height, width, ROWS >> j, LANES >> j)
        height, width = (height + 1) // 2, (width + 1) // 2
        row = top // 2 + tl.arange(0, ROWS >> (j + 1))[:, None]
        column = left // 2 + tl.arange(0, LANES >> (j + 1))[None, :]
        # What a row has beyond its values is nobody's, and several columns are written at once.
        inside = (row < height) & (column < pitches[j])
        offset = (plane.to(tl.int64) * height + row) * pitches[j] + column
        tl.store(x_halves[j] + offset, a, mask=inside)
        tl.store(y_halves[j] + offset, b, mask=inside)


@triton.jit
def _halve(tile, top, left, height, width, ROWS: tl.constexpr, LANES: tl.constexpr):
    """2x2 means of a tile whose first pixel is at ``top`` and ``left``."""
    first, second = tl.split(tl.reshape(tile, (ROWS, LANES // 2, 2)))
    column = left + 2 * tl.arange(0, LANES // 2)[None, :]
    across = 0.5 * (first + tl.where(column + 1 < width, second, first))
    pairs = tl.permute(tl.reshape(across, (ROWS // 2, 2, LANES // 2)), (0, 2, 1))
    upper, lower = tl.split(pairs)
    row = top + 2 * tl.arange(0, ROWS // 2)[:, None]
    return 0.5 * (upper + tl.where(row + 1 < height, lower, upper))


@triton.jit
def _shares(planes, rows, height, width, INSET: tl.constexpr, K: tl.constexpr):
    """Of a level its strips, their rows, those of a program, and how many programs it has."""
    REACH: tl.constexpr = K.TAPS - 1
    if K.WANT > 0:
        strips = tl.cdiv(width, K.LANES * K.COLUMNS - REACH)
        programs = planes * strips * tl.cdiv(height, rows)
    else:
        # The map's, and what `derive` has before it.
        BEFORE: tl.constexpr = (INSET + K.COLUMNS - 1) // K.COLUMNS * K.COLUMNS
        strips = tl.cdiv(width + INSET - REACH + BEFORE, K.LANES * K.COLUMNS)
        height += 2 * INSET - REACH
        rows = tl.minimum(rows, height)
        programs = tl.cdiv(planes * strips * height, rows)
    return strips, height, rows, programs


@triton.jit(
    do_not_specialize=["planes", "rows", "channels", "height", "width", "sums_stride"],
    do_not_specialize_on_alignment=["sums"],
)
def coarser(
    x_levels,
    y_levels,
    weights,
    gradients,
    others,
    scratch,
    sums,
    weights_strides,
    sums_stride,
    planes,
    rows,
    channels,
    height,
    width,
    across,
    down,
    root,
    numbers,
    shares,
    wholes,
    K: tl.constexpr,
):
    """`march` of all levels but the finest, or `derive` of their sums, each by its own programs.

    The images and gradients are those that `pyramid` halves and allocates, ``height`` and ``width``
    those of the first level. The last one is of SSIM, the others of its contrast-structure factor.
    A level's programs follow from its size: numbers of them in a tuple, which are integers, would
    be cases for the compiler.
    """
    INSET: tl.constexpr = 0 if K.PADDING == VALID else K.TAPS // 2
    program = tl.program_id(0)
    x, y, weight, gradient, other = x_levels[0], y_levels[0], weights[0], gradients[0], others[0]
    share, whole, weight_strides = shares[0], wholes[0], weights_strides[0]
    begin, level = 0, 0
    tall, wide = height, width
    end = _shares(planes, rows, tall, wide, INSET, K)[3]
    for j in tl.static_range(1, len(x_levels)):
        further = program >= end
        tall, wide = (tall + 1) // 2, (wide + 1) // 2
        height, width = tl.where(further, tall, height), tl.where(further, wide, width)
        begin, level = tl.where(further, end, begin), tl.where(further, j, level)
        x, y = tl.where(further, x_levels[j], x), tl.where(further, y_levels[j], y)
        gradient = tl.where(further, gradients[j], gradient)
        other = tl.where(further, others[j], other)
        share, whole = tl.where(further, shares[j], share), tl.where(further, wholes[j], whole)
        if K.WEIGHTED:
            weight = tl.where(further, weights[j], weight)
            found = ()
            for k in tl.static_range(4):
                found = found + (tl.where(further, weights_strides[j][k], weight_strides[k]),)
            weight_strides = found
        end += _shares(planes, rows, tall, wide, INSET, K)[3]
    pitch = (width + 15) // 16 * 16
    plane = height.to(tl.int64) * pitch
    strides = channels * plane, plane, pitch, 1
    x, y, weight = Image(x, strides), Image(y, strides), Image(weight, weight_strides)
    gradient, other = Image(gradient, strides), Image(other, strides)
    # Infinite where the luminance is 1.
    c1 = tl.where(level + 1 == len(x_levels), numbers.c1, float("inf"))
    numbers = Constants(numbers.low, c1, numbers.c2)
    place = sums + tl.cast(level, tl.int64) * planes * sums_stride
    strips, tall, rows, _ = _shares(planes, rows, height, width, INSET, K)
    parts = tl.cdiv(tall, rows)
    if K.WANT > 0:
        march(
            *(x, y, weight, gradient, other, scratch, place, place, place, place, sums_stride),
            *(begin, strips, parts, rows, channels, height, width, across, down, root, numbers),
            *(share, 0.0, whole, (), K),
        )
    else:
        # One more where programs end in a strip that others begin in.
        parts += (tall % rows > 0).to(tl.int32)
        derive(
            *(x, y, weight, x.address, scratch, place, place, place, place, sums_stride, 0),
            *(begin, strips, parts, rows, planes * strips * tall),
            *(
                0,
                -INSET,
                tall - INSET,
                -INSET,
                channels,
                height,
                width,
                across,
                down,
                root,
                numbers,
            ),
            *(whole, (), K),
        )


@triton.jit
def _scale(scale, step, derivatives, planes, plane, LEVEL: tl.constexpr, PRODUCT: tl.constexpr):
    """Of a level's mean."""
    found = tl.load(scale + LEVEL * step)
    if PRODUCT:
        found *= tl.load(derivatives + LEVEL * planes + plane)
    return found


@triton.jit(do_not_specialize=["strips", "bands", "rows", "planes", "channels", "height", "width"])
def sweep(
    gradient,
    coarse,
    pitches,
    scale,
    derivatives,
    x,
    y,
    strides,
    scale_strides,
    x_strides,
    y_strides,
    strips,
    bands,
    rows,
    planes,
    channels,
    height,
    width,
    usual,
    COARSE: tl.constexpr,
    PRODUCT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WHOLE: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    """Scales the finest level's gradient and adds what the coarser ones send to each pixel.

    Gradients come with the scale ``usual``. Where that is right and nothing is added, nothing is
    read or written.

    A pixel gets a quarter of the value above it, half of it at an odd edge and all of it in an odd
    corner, at each level on the way. ``coarse`` are of whole rows of as many values as ``pitches``
    has. For a ``PRODUCT`` of the means ``scale`` is that of it, to be multiplied with its
    ``derivatives`` by the means. With ``DISTANCE`` the mean of |x - y| is the last of them.
    """
    width = width // AT_ONCE * AT_ONCE if WHOLE else width
    strip, band, plane = _place(tl.program_id(0), strips, bands)
    n, c = plane // channels, plane % channels
    scale += n.to(tl.int64) * scale_strides[1] + c.to(tl.int64) * scale_strides[2]
    gradient = _plane(Image(gradient, strides), plane, channels).address
    x = _plane(Image(x, x_strides), plane, channels).address
    y = _plane(Image(y, y_strides), plane, channels).address
    of_mean = _scale(scale, scale_strides[0], derivatives, planes, plane, 0, PRODUCT)
    factor, factors = of_mean / usual, ()
    for j in tl.static_range(COARSE):
        of_mean_j = _scale(scale, scale_strides[0], derivatives, planes, plane, j + 1, PRODUCT)
        factors = factors + (of_mean_j / usual,)
    top = band * rows
    bottom = tl.minimum(top + rows, height)
    if DISTANCE:
        share = _scale(scale, scale_strides[0], derivatives, planes, plane, COARSE + 1, PRODUCT)
        share /= 1.0 * height * width
    elif COARSE == 0:
        bottom = tl.where(of_mean == usual, top, bottom)
    column = strip * LANES + tl.arange(0, LANES)[None, :]
    while top < bottom:
        row = top + tl.arange(0, ROWS)[:, None]
        inside = (row < bottom) & (column < width)
        address = gradient + row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3]
        total = factor * tl.load(address, mask=inside, other=0).to(tl.float32)
        if DISTANCE:
            a = x + row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
            b = y + row.to(tl.int64) * y_strides[2] + column.to(tl.int64) * y_strides[3]
            difference = tl.load(a, mask=inside, other=0).to(tl.float32)
            difference -= tl.load(b, mask=inside, other=0).to(tl.float32)
            total += share * tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        down = tl.full((ROWS, 1), 1.0, tl.float32)
        across = tl.full((1, LANES), 1.0, tl.float32)
        below, beside, tall, wide = row, column, height, width
        for j in tl.static_range(COARSE):
            down *= tl.where((tall % 2 == 1) & (below == tall - 1), 1.0, 0.5)
            across *= tl.where((wide % 2 == 1) & (beside == wide - 1), 1.0, 0.5)
            below, beside = below // 2, beside // 2
            tall, wide = (tall + 1) // 2, (wide + 1) // 2
            offset = (plane.to(tl.int64) * tall + below) * pitches[j] + beside
            sent = factors[j] * tl.load(coarse[j] + offset, mask=inside, other=0)
            total += sent * (down * across)
        tl.store(address, total.to(gradient.dtype.element_ty), mask=inside)
        top += ROWS
