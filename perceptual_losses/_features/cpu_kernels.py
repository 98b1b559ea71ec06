"""Numba kernels of the feature losses: what surrounds the products of a convolution, and LPIPS.

Arrays of features are ``(N, H, W, C)``, of float32 or of the bits of bfloat16, which NumPy does not
have: the channels of a place lie side by side.

Winograd's minimal filtering gives 4x4 outputs of a 3x3 filter from 6x6 inputs with 36 products for
each pair of channels, not 144, or 2x2 outputs from 4x4 inputs with 16 and not 36. Inputs ``d`` and
filters ``g`` are taken to another basis, where the products are those of as many matrices, and
back:

    Y = A^T [(G g G^T) * (B^T d B)] A

A polynomial, the product of those with the coefficients of ``d`` and ``g``, is known by its values
at one point more than its degree. These are 0, 1, -1, 1/2, -2 and infinity, which lose the fewest
digits, or 0, 1, -1 and infinity, which lose next to none.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Barabasz, Anderson,
Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution for deep
neural networks", ACM Transactions on Mathematical Software 46(4), 2020.
"""

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

from .._runtime.numba_kernels import OPTIONS, entry

# Channels at a time: the values of a tile for so many stay in a core's first-level cache.
CHANNELS = C = 64

# Of float32, for the arithmetic to be.
ZERO, ONE, QUARTER, EIGHTH = np.float32(0), np.float32(1), np.float32(0.25), np.float32(0.125)
HALF, THREE_HALVES, FIVE_HALVES = np.float32(0.5), np.float32(1.5), np.float32(2.5)
TWO, FOUR, EIGHT = np.float32(2), np.float32(4), np.float32(8)
NAN, INFINITY = np.float32(math.nan), np.float32(math.inf)

_kernel = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
_inlined = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, **OPTIONS)
_ordered = njit(
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    forceinline=True,
    **{**OPTIONS, "fastmath": False},
)


@_ordered
def _difference(a, b):
    """Of equal products exactly zero, which a fused multiply-add would leave a rounding of."""
    return a - b


def _wide(value):
    """In float32, from the bits of bfloat16 if these are what there is."""


@overload(_wide, inline="always")
def _wide_of(value):
    if value == types.float32:
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


def _narrow(value, like):
    """The inverse of `_wide`, to the nearest and even."""


@overload(_narrow, inline="always")
def _narrow_of(value, like):
    if like == types.float32:
        return lambda value, like: value

    def rounded(value, like):
        bits = np.float32(value).view(np.uint32)
        up = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        # Rounding could carry a NaN over into a number.
        up = up if value == value else np.uint32(bits | np.uint32(0x400000))
        return np.uint16(up >> np.uint32(16))

    return rounded


@_inlined
def _to_6_points(d0, d1, d2, d3, d4, d5):
    """``B^T d``: each row is the product of ``x - p`` over the other points."""
    odd = d3 - d1
    even = d4 - d2
    return (
        d0 + d4 - TWO * d2 + THREE_HALVES * odd,
        d4 - d1 + HALF * d2 + FIVE_HALVES * d3,
        d4 + d1 + HALF * d3 - FIVE_HALVES * d2,
        even + TWO * odd,
        even - HALF * odd,
        d1 + d5 - TWO * d3 + THREE_HALVES * even,
    )


@_inlined
def _from_6_points(m0, m1, m2, m3, m4, m5):
    """``A^T m``: the sums of ``p^i m`` over the points."""
    total = m1 + m2
    difference = m1 - m2
    return (
        m0 + total + m3 + m4,
        difference + HALF * m3 - TWO * m4,
        total + QUARTER * m3 + FOUR * m4,
        difference + EIGHTH * m3 - EIGHT * m4 + m5,
    )


# The transforms of a tile, first down the rows and then along each, work in one array and with
# constant distances in it: so the compiler knows that what is written is not what it reads next.


@_kernel
def _tile_to_6_points(tile):
    row = 6 * C
    for k in range(row):
        p0, p1, p2, p3, p4, p5 = _to_6_points(
            *(tile[k], tile[k + row], tile[k + 2 * row]),
            *(tile[k + 3 * row], tile[k + 4 * row], tile[k + 5 * row]),
        )
        tile[k], tile[k + row], tile[k + 2 * row] = p0, p1, p2
        tile[k + 3 * row], tile[k + 4 * row], tile[k + 5 * row] = p3, p4, p5
    for i in range(6):
        t = tile[i * row : (i + 1) * row]
        for k in range(C):
            p0, p1, p2, p3, p4, p5 = _to_6_points(
                *(t[k], t[k + C], t[k + 2 * C], t[k + 3 * C], t[k + 4 * C], t[k + 5 * C])
            )
            t[k], t[k + C], t[k + 2 * C] = p0, p1, p2
            t[k + 3 * C], t[k + 4 * C], t[k + 5 * C] = p3, p4, p5


@_kernel
def _tile_from_6_points(tile):
    row = 6 * C
    for k in range(row):
        y0, y1, y2, y3 = _from_6_points(
            *(tile[k], tile[k + row], tile[k + 2 * row]),
            *(tile[k + 3 * row], tile[k + 4 * row], tile[k + 5 * row]),
        )
        tile[k], tile[k + row], tile[k + 2 * row], tile[k + 3 * row] = y0, y1, y2, y3
    for i in range(4):
        t = tile[i * row : (i + 1) * row]
        for k in range(C):
            y0, y1, y2, y3 = _from_6_points(
                *(t[k], t[k + C], t[k + 2 * C], t[k + 3 * C], t[k + 4 * C], t[k + 5 * C])
            )
            t[k], t[k + C], t[k + 2 * C], t[k + 3 * C] = y0, y1, y2, y3


@_kernel
def _tile_to_4_points(tile):
    row = 4 * C
    for k in range(row):
        d0, d1, d2, d3 = tile[k], tile[k + row], tile[k + 2 * row], tile[k + 3 * row]
        tile[k], tile[k + row] = d2 - d0, d2 + d1
        tile[k + 2 * row], tile[k + 3 * row] = d2 - d1, d3 - d1
    for i in range(4):
        t = tile[i * row : (i + 1) * row]
        for k in range(C):
            d0, d1, d2, d3 = t[k], t[k + C], t[k + 2 * C], t[k + 3 * C]
            t[k], t[k + C], t[k + 2 * C], t[k + 3 * C] = d2 - d0, d2 + d1, d2 - d1, d3 - d1


@_kernel
def _tile_from_4_points(tile):
    row = 4 * C
    for k in range(row):
        m0, m1, m2, m3 = tile[k], tile[k + row], tile[k + 2 * row], tile[k + 3 * row]
        tile[k], tile[k + row] = m0 + m1 + m2, m1 - m2 + m3
    for i in range(2):
        t = tile[i * row : (i + 1) * row]
        for k in range(C):
            m0, m1, m2, m3 = t[k], t[k + C], t[k + 2 * C], t[k + 3 * C]
            t[k], t[k + C] = m0 + m1 + m2, m1 - m2 + m3


@entry
def to_points(images, rectified, first, begin, end, places, factors, sign, points, tile):
    """Takes tiles of images with zeros around them to the points, ``B^T d B``.

    Channels are in blocks of as many as a tile has.

    Args:
        images: ``(N, H, W, blocks, C)``.
        rectified: of the same shape: where it is not positive the images count as zero; or None.
        first: the tile that comes first in ``points``.
        begin: the first of the tiles, counted from there.
        end: the one after the last.
        places: of each point among the matrices.
        factors: of what goes there, for a row's point alone; `from_points` has those of columns.
        sign: of every other pixel of a tile, like a chessboard's.
        points: ``(6, 6, tiles, blocks, C)``, or of 4 points each way.
        tile: scratch memory, ``(6, 6, C)`` or ``(4, 4, C)``.
    """
    _, height, width, blocks, _ = images.shape
    span = tile.shape[0]
    step = span - 2
    across, down = -(-width // step), -(-height // step)
    for place in range(begin, end):
        image = (first + place) // (across * down)
        top = (first + place) // across % down * step - 1
        left = (first + place) % across * step - 1
        for block in range(blocks):
            for i in range(span):
                for j in range(span):
                    row, column = top + i, left + j
                    own = ONE if (i + j) % 2 == 0 else sign
                    if row < 0 or row >= height or column < 0 or column >= width:
                        for k in range(C):
                            tile[i, j, k] = ZERO
                    elif rectified is None:
                        for k in range(C):
                            tile[i, j, k] = own * _wide(images[image, row, column, block, k])
                    else:
                        for k in range(C):
                            dead = _wide(rectified[image, row, column, block, k]) <= ZERO
                            value = own * _wide(images[image, row, column, block, k])
                            tile[i, j, k] = ZERO if dead else value
            if span == 6:
                _tile_to_6_points(tile.reshape(-1))
            else:
                _tile_to_4_points(tile.reshape(-1))
            for i in range(span):
                for j in range(span):
                    # Before the loop: it could be writing to them for all the compiler knows.
                    row, column, factor = places[i], places[j], factors[i]
                    for k in range(C):
                        points[row, column, place, block, k] = _narrow(
                            factor * tile[i, j, k], points[row, column, place, block, k]
                        )


@entry
def from_points(points, bias, rectify, first, begin, end, places, factors, sign, images, tile):
    """Takes the products back to tiles of images, ``A^T M A``.

    ``bias`` ``(blocks, C)`` is added, and negative values become zero, unless these arguments are
    None. The others are those of `to_points`.
    """
    _, height, width, blocks, _ = images.shape
    span = tile.shape[0]
    step = span - 2
    across, down = -(-width // step), -(-height // step)
    for place in range(begin, end):
        image = (first + place) // (across * down)
        top = (first + place) // across % down * step
        left = (first + place) % across * step
        for block in range(blocks):
            for i in range(span):
                for j in range(span):
                    row, column, factor = places[i], places[j], factors[j]
                    for k in range(C):
                        tile[i, j, k] = factor * _wide(points[row, column, place, block, k])
            if span == 6:
                _tile_from_6_points(tile.reshape(-1))
            else:
                _tile_from_4_points(tile.reshape(-1))
            for i in range(step):
                for j in range(step):
                    row, column = top + i, left + j
                    if row >= height or column >= width:
                        continue
                    own = ONE if (i + j) % 2 == 0 else sign
                    for k in range(C):
                        value = own * tile[i, j, k]
                        if bias is not None:
                            value += _wide(bias[block, k])
                        if rectify is not None:
                            value = ZERO if value <= ZERO else value
                        images[image, row, column, block, k] = _narrow(
                            value, images[image, row, column, block, k]
                        )


@_inlined
def _root(squared):
    """NaN of infinity: unit features would be zero, and all images equal."""
    return NAN if squared == INFINITY else math.sqrt(squared)


@entry
def calibrated(a, b, weight, offset, begin, end, sums):
    """LPIPS's distances of features, summed over each row of an image.

    Args:
        a: ``(N, H, W, C)``, of float32 or the bits of bfloat16.
        b: the same.
        weight: ``(C,)``.
        offset: that is added to the lengths.
        begin: the first of the rows of all images.
        end: the one after the last.
        sums: ``(N, H)``.
    """
    _, height, width, channels = a.shape
    for place in range(begin, end):
        image, row = place // height, place % height
        total = 0.0
        for column in range(width):
            length_a, length_b = ZERO, ZERO
            for k in range(channels):
                x, y = _wide(a[image, row, column, k]), _wide(b[image, row, column, k])
                length_a += x * x
                length_b += y * y
            inverse_a = ONE / (_root(length_a) + offset)
            inverse_b = ONE / (_root(length_b) + offset)
            here = ZERO
            for k in range(channels):
                x, y = _wide(a[image, row, column, k]), _wide(b[image, row, column, k])
                difference = _difference(x * inverse_a, y * inverse_b)
                here += weight[k] * difference * difference
            total += here
        sums[image, row] = total


@entry
def calibrated_gradient(a, b, weight, offset, scales, begin, end, gradient):
    """The gradient of half of each image's sum of `calibrated` with respect to ``a``, times its
    number in ``scales``. It is zero where all features are.
    """
    _, height, width, channels = a.shape
    for place in range(begin, end):
        image, row = place // height, place % height
        for column in range(width):
            length_a, length_b = ZERO, ZERO
            for k in range(channels):
                x, y = _wide(a[image, row, column, k]), _wide(b[image, row, column, k])
                length_a += x * x
                length_b += y * y
            length_a = _root(length_a)
            inverse_a = ONE / (length_a + offset)
            inverse_b = ONE / (_root(length_b) + offset)
            along = ZERO
            for k in range(channels):
                x, y = _wide(a[image, row, column, k]), _wide(b[image, row, column, k])
                along += x * (weight[k] * _difference(x * inverse_a, y * inverse_b))
            across = ZERO if length_a == ZERO else scales[image] * inverse_a
            along = ZERO if length_a == ZERO else across * along * inverse_a / length_a
            for k in range(channels):
                x, y = _wide(a[image, row, column, k]), _wide(b[image, row, column, k])
                sent = weight[k] * _difference(x * inverse_a, y * inverse_b)
                gradient[image, row, column, k] = _narrow(
                    across * sent - along * x, gradient[image, row, column, k]
                )
