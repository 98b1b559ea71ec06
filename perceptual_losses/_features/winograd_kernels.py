"""Numba kernels of Winograd's minimal filtering: all but its products of matrices.

Arrays of features are ``(N, H, W, blocks, C)``, of float32 or of the bits of bfloat16: the channels
of a pixel lie side by side, in blocks of as many as a tile has.

A 3x3 filter's outputs are computed in tiles of 4x4 from inputs of 6x6, with 36 products for each
pair of channels and not 144, or in tiles of 2x2 from inputs of 4x4, with 16 and not 36. Inputs
``d`` and filters ``g`` are transformed to another basis. There the products are those of as many
matrices, and the output transform brings them back:

    Y = A^T [(G g G^T) * (B^T d B)] A

The products of polynomials with the coefficients ``d`` and ``g`` are known by their values at one
point more than their degree. The points are 0, 1, -1, 1/2, -2 and infinity, which lose the fewest
digits, or 0, 1, -1 and infinity, which lose next to none.

Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016; Barabasz, Anderson,
Soodhalter and Gregg, "Error analysis and improving the accuracy of Winograd convolution for deep
neural networks", ACM Transactions on Mathematical Software 46(4), 2020.
"""

import numpy as np

from .._runtime.numba_kernels import entry, inlined, kernel
from .float32_kernels import ONE, ZERO, from_float32, to_float32

# Channels of a block: a tile's values for so many stay in a core's first-level cache.
CHANNELS = C = 64

QUARTER, EIGHTH, HALF = np.float32(0.25), np.float32(0.125), np.float32(0.5)
THREE_HALVES, FIVE_HALVES = np.float32(1.5), np.float32(2.5)
TWO, FOUR, EIGHT = np.float32(2), np.float32(4), np.float32(8)


@inlined
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


@inlined
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


# The transforms of a tile, first down its columns and then along its rows, work in one array at
# constant distances. So the compiler knows that no write overlaps the next read.


@kernel
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


@kernel
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


@kernel
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


@kernel
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
def transform_inputs(
    images, outputs, first_tile, begin, end, point_order, factors, odd_sign, transformed, tile
):
    """The input transform, ``B^T d B``, of tiles of images with zeros around them.

    Args:
        images: the inputs ``(N, H, W, blocks, C)``.
        outputs: None, or in a backward the rectified outputs of the forward, shaped like
            ``images``: these count as zero where an output is not positive.
        first_tile: the tile that comes first in ``transformed``.
        begin: the first tile to transform, counted from ``first_tile``.
        end: the tile after the last.
        point_order: the place of each point among the matrices.
        factors: the factor of each point; here it applies to a row's point only, and in
            `transform_outputs` to a column's.
        odd_sign: the sign of every other pixel of a tile, in a chessboard's pattern.
        transformed: the result ``(6, 6, tiles, blocks, C)``, or with 4 points in each direction.
        tile: scratch memory, ``(6, 6, C)`` or ``(4, 4, C)``.
    """
    _, height, width, blocks, _ = images.shape
    span = tile.shape[0]
    step = span - 2
    tiles_across, tiles_down = -(-width // step), -(-height // step)
    for index in range(begin, end):
        image = (first_tile + index) // (tiles_across * tiles_down)
        top = (first_tile + index) // tiles_across % tiles_down * step - 1
        left = (first_tile + index) % tiles_across * step - 1
        for block in range(blocks):
            for i in range(span):
                for j in range(span):
                    row, column = top + i, left + j
                    sign = ONE if (i + j) % 2 == 0 else odd_sign
                    if row < 0 or row >= height or column < 0 or column >= width:
                        for k in range(C):
                            tile[i, j, k] = ZERO
                    elif outputs is None:
                        for k in range(C):
                            tile[i, j, k] = sign * to_float32(images[image, row, column, block, k])
                    else:
                        for k in range(C):
                            inactive = to_float32(outputs[image, row, column, block, k]) <= ZERO
                            value = sign * to_float32(images[image, row, column, block, k])
                            tile[i, j, k] = ZERO if inactive else value
            if span == 6:
                _tile_to_6_points(tile.reshape(-1))
            else:
                _tile_to_4_points(tile.reshape(-1))
            for i in range(span):
                for j in range(span):
                    # Read before the loop: for all the compiler knows, it writes to these arrays.
                    row, column, factor = point_order[i], point_order[j], factors[i]
                    for k in range(C):
                        transformed[row, column, index, block, k] = from_float32(
                            factor * tile[i, j, k], transformed[row, column, index, block, k]
                        )


@entry
def transform_outputs(
    products,
    bias,
    rectify,
    first_tile,
    begin,
    end,
    point_order,
    factors,
    odd_sign,
    first_block,
    images,
    tile,
):
    """The output transform, ``A^T M A``, of the products of matrices to tiles of images.

    ``bias`` ``(blocks, C)`` is added and negative values become zero, unless ``bias`` or
    ``rectify`` is None. The products are those of some of the images' blocks of channels, from
    ``first_block`` on. The other arguments are those of `transform_inputs`.
    """
    _, height, width, _, _ = images.shape
    span, blocks = tile.shape[0], products.shape[3]
    step = span - 2
    tiles_across, tiles_down = -(-width // step), -(-height // step)
    for index in range(begin, end):
        image = (first_tile + index) // (tiles_across * tiles_down)
        top = (first_tile + index) // tiles_across % tiles_down * step
        left = (first_tile + index) % tiles_across * step
        for block in range(blocks):
            to = first_block + block
            for i in range(span):
                for j in range(span):
                    row, column, factor = point_order[i], point_order[j], factors[j]
                    for k in range(C):
                        product = to_float32(products[row, column, index, block, k])
                        tile[i, j, k] = factor * product
            if span == 6:
                _tile_from_6_points(tile.reshape(-1))
            else:
                _tile_from_4_points(tile.reshape(-1))
            for i in range(step):
                for j in range(step):
                    row, column = top + i, left + j
                    if row >= height or column >= width:
                        continue
                    sign = ONE if (i + j) % 2 == 0 else odd_sign
                    for k in range(C):
                        value = sign * tile[i, j, k]
                        if bias is not None:
                            value += to_float32(bias[to, k])
                        if rectify is not None:
                            value = ZERO if value <= ZERO else value
                        images[image, row, column, to, k] = from_float32(
                            value, images[image, row, column, to, k]
                        )
