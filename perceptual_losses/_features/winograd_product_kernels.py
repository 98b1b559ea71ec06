"""Numba kernels of a whole convolution in float32: the products of matrices, and all three steps.

A product is computed in blocks that fill the processor's vector registers. LLVM doesn't arrange
loops in this way, so the instructions of a block are written out.
"""

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .._runtime.numba_kernels import entry, kernel
from .._runtime.vectors import BYTES, INDEX, Vectors
from .winograd_kernels import C, transform_inputs, transform_outputs

# Columns of a block: each of its rows has the sums in two vector registers. The matrices of filters
# are kept in panels of so many columns.
PANEL = 2 * (BYTES // 4)
# Rows of a block. Their sums leave a few of the 32 or 16 registers for the factors.
ROWS = 14 if BYTES == 64 else 6


@intrinsic
def _multiply_block(typing_context, inputs, row, channel, panel, products, column):
    """Adds to ``ROWS`` rows of products, from ``row`` on, those of ``C`` channels of the inputs.

    The sums of the first channels replace what is there. In the products they begin at ``column``.
    """

    def generate(context, builder, signature, arguments):
        kinds, (inputs, row, channel, panel, products, column) = signature.args, arguments
        vectors = Vectors(context, builder, kinds[0].dtype)
        arrays = [
            vectors.array(kinds[i], array) for i, array in ((0, inputs), (3, panel), (4, products))
        ]
        rows = [builder.add(row, INDEX(i)) for i in range(ROWS)]
        values = [vectors.row(arrays[0], i) for i in rows]
        sums = [cgutils.alloca_once_value(builder, vectors.zero) for _ in range(2 * ROWS)]
        end = builder.add(channel, INDEX(C))
        with cgutils.for_range(builder, end, start=channel) as loop:
            line = vectors.row(arrays[1], loop.index)
            pair = [vectors.load(line, INDEX(j * vectors.lanes)) for j in range(2)]
            for i in range(ROWS):
                factor = vectors.spread(values[i], loop.index)
                for j in range(2):
                    total = builder.load(sums[2 * i + j])
                    total = vectors.add(total, vectors.multiply(factor, pair[j]))
                    builder.store(total, sums[2 * i + j])
        is_first = builder.icmp_signed("==", channel, INDEX(0))
        for i in range(ROWS):
            out = vectors.row(arrays[2], rows[i])
            for j in range(2):
                place = builder.add(column, INDEX(j * vectors.lanes))
                before = builder.select(is_first, vectors.zero, vectors.load(out, place))
                vectors.store(vectors.add(before, builder.load(sums[2 * i + j])), out, place)
        return context.get_dummy_value()

    place = types.intp, types.intp
    return types.void(inputs, *place, panel, products, types.intp), generate


@intrinsic
def _transpose_block(typing_context, source, row, column, target, target_row, target_column):
    """Copies a square block, as many values wide as a vector, into ``target``, transposed."""

    def generate(context, builder, signature, arguments):
        kinds, (source, row, column, target, target_row, target_column) = signature.args, arguments
        vectors = Vectors(context, builder, kinds[0].dtype)
        matrix, out = vectors.array(kinds[0], source), vectors.array(kinds[3], target)
        lines = [
            vectors.load(vectors.row(matrix, builder.add(row, INDEX(i))), column)
            for i in range(vectors.lanes)
        ]
        for i, line in enumerate(vectors.transpose(lines)):
            vectors.store(line, vectors.row(out, builder.add(target_row, INDEX(i))), target_column)
        return context.get_dummy_value()

    place = types.intp, types.intp
    return types.void(source, *place, target, *place), generate


@kernel
def _multiply(inputs, matrices, transposed, first_panel, count, scratch, products):
    """Writes the products of ``count`` rows of each input matrix and some panels of filters.

    Whole blocks of rows are computed. Nobody reads the rows after ``count``.
    """
    points, _, depth = inputs.shape
    for point in range(points):
        for index in range(products.shape[2] // PANEL):
            panel = matrices[point, 0] if transposed else matrices[point, first_panel + index]
            if transposed:
                panel = scratch
                row = (first_panel + index) * PANEL
                half = PANEL // 2
                for k in range(0, depth, half):
                    block = matrices[point, k // PANEL]
                    _transpose_block(block, row, k % PANEL, scratch, k, 0)
                    _transpose_block(block, row + half, k % PANEL, scratch, k, half)
            for row in range(0, count, ROWS):
                # Sums of parts round less than one sum of all channels.
                for k in range(0, depth, C):
                    _multiply_block(inputs[point], row, k, panel, products[point], index * PANEL)


@entry
def convolve(
    images,
    rectified,
    matrices,
    transposed,
    bias,
    rectify,
    size,
    groups,
    begin,
    end,
    point_order,
    factors,
    odd_sign,
    transformed,
    products,
    scratch,
    tile,
    out,
):
    """The convolution of some units. A unit is ``size`` tiles and one group of output channels.

    Args:
        images: the inputs ``(N, H, W, blocks, C)``.
        rectified: None, or in a backward the rectified outputs of the forward.
        matrices: those of the filters, in panels of columns ``(points, panels, in, PANEL)``.
        transposed: whether the matrices are to be transposed.
        bias: None or ``(blocks, C)``.
        rectify: None, or true for a rectifier.
        size: the tiles of a unit.
        groups: the number of groups of the output's channels.
        begin: the first unit.
        end: the unit after the last.
        point_order: as for `transform_inputs`, like the two after it.
        factors: the factor of each point.
        odd_sign: the sign of every other pixel.
        transformed: scratch memory ``(6, 6, tiles, blocks, C)``, the tiles a multiple of ``ROWS``.
        products: scratch memory of that shape, for the blocks of a group.
        scratch: scratch memory for a panel ``(in, PANEL)``.
        tile: scratch memory ``(6, 6, C)``.
        out: the result ``(N, H, W, blocks, C)``.
    """
    n, height, width, _, _ = images.shape
    span, _, rows, blocks, _ = transformed.shape
    step = span - 2
    total = n * -(-height // step) * -(-width // step)
    inputs = transformed.reshape(span * span, rows, blocks * C)
    group_blocks = products.shape[3]
    outputs = products.reshape(span * span, rows, group_blocks * C)
    for unit in range(begin, end):
        first, group = unit // groups * size, unit % groups
        count = min(size, total - first)
        basis = point_order, factors, odd_sign
        if group == 0 or unit == begin:
            transform_inputs(images, rectified, first, 0, count, *basis, transformed, tile)
        first_block = group * group_blocks
        first_panel = first_block * (C // PANEL)
        _multiply(inputs, matrices, transposed, first_panel, count, scratch, outputs)
        transform_outputs(products, bias, rectify, first, 0, count, *basis, first_block, out, tile)
