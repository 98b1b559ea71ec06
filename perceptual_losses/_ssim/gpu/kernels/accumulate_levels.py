"""The kernel for the sum of the gradients of MS-SSIM's levels."""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from .addresses import plane_at, tile_of
from .arguments import COLUMNS_PER_ACCESS, Image


@triton.jit
def _upstream(
    upstream, stride, derivatives, planes, plane, LEVEL: tl.constexpr, PRODUCT: tl.constexpr
):
    """The upstream gradient of a level's mean."""
    gradient = tl.load(upstream + LEVEL * stride)
    if PRODUCT:
        gradient *= tl.load(derivatives + LEVEL * planes + plane)
    return gradient


@triton.jit
def _exists(valid, row, column, inside):
    """Whether pixels exist, as a number."""
    address = valid.address + row.to(tl.int64) * valid.strides[2]
    return tl.load(address + column.to(tl.int64) * valid.strides[3], mask=inside, other=1)


@triton.jit
def _valid_share(valid, plane, channels, at, size, inside):
    """The share of valid pixels among the 2x2 (2x2x2) of a place of the next level: its plane, row
    and column.
    """
    share = tl.zeros(inside.shape, tl.float32)
    PLANES: tl.constexpr = len(valid.strides) - 3
    for i in tl.static_range(PLANES):
        # An odd last plane, row or column counts twice.
        z = tl.minimum(2 * at[0] + i, size[0] - 1)
        image = plane_at(valid, plane, z, channels)
        for k in tl.static_range(4):
            down = tl.minimum(2 * at[1] + k // 2, size[1] - 1)
            across = tl.minimum(2 * at[2] + k % 2, size[2] - 1)
            exists = _exists(image, down, across, inside).to(tl.float32)
            share += 0.25 / PLANES * exists
    return share


@triton.jit(
    do_not_specialize=[
        *("strips", "bands", "rows", "planes", "depth", "channels", "height", "width"),
    ]
)
def accumulate_levels_kernel(
    gradient,
    coarse,
    pitches,
    upstream,
    derivatives,
    images,
    strides,
    upstream_strides,
    image_strides,
    valid,
    valid_strides,
    strips,
    bands,
    rows,
    planes,
    depth,
    channels,
    height,
    width,
    premultiplied_by,
    COARSE: tl.constexpr,
    PRODUCT: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED_WIDTH: tl.constexpr,
    ABS_DIFFERENCE: tl.constexpr,
    RANGED: tl.constexpr,
):
    """Multiplies the finest level's gradient with its upstream gradient, and adds the shares of the
    coarser levels in each pixel.

    The gradients come ``premultiplied_by`` an upstream gradient. Where that is right and nothing is
    added, nothing is read or written.

    A pixel gets a quarter of the value above it, half of it at an odd edge and all of it in an odd
    corner, at each level on the way; a voxel of a volume with its ``depth`` alike. If only some
    pixels are ``valid``, of all levels but the coarsest, these get equal parts of all, and the
    others nothing. ``coarse`` are the gradients of
    the coarser levels, with rows of the lengths ``pitches``. For a ``PRODUCT`` of the means
    ``upstream`` is the gradient of that, to be multiplied with its ``derivatives`` by the means.
    With ``ABS_DIFFERENCE`` the mean of |x - y| is the last of them, and ``images`` are both images;
    for ``RANGED`` ones, in whose units |x - y| is then, the ranges follow.
    """
    VOLUMES: tl.constexpr = len(strides) == 5
    width = width // COLUMNS_PER_ACCESS * COLUMNS_PER_ACCESS if ALIGNED_WIDTH else width
    strip, band, place = tile_of(tl.program_id(0), strips, bands)
    plane, z = place // depth, place % depth
    n, c = plane // channels, plane % channels
    upstream += n.to(tl.int64) * upstream_strides[1] + c.to(tl.int64) * upstream_strides[2]
    gradient = plane_at(Image(gradient, strides), plane, z, channels)
    strides = gradient.strides
    gradient = gradient.address
    stride = upstream_strides[0]
    finest = _upstream(upstream, stride, derivatives, planes, plane, 0, PRODUCT)
    factor, factors = finest / premultiplied_by, ()
    for j in tl.static_range(COARSE):
        at_level = _upstream(upstream, stride, derivatives, planes, plane, j + 1, PRODUCT)
        factors = factors + (at_level / premultiplied_by,)
    top = band * rows
    bottom = tl.minimum(top + rows, height)
    if ABS_DIFFERENCE:
        at_pixel = _upstream(upstream, stride, derivatives, planes, plane, COARSE + 1, PRODUCT)
        at_pixel /= 1.0 * depth * height * width
        if RANGED:
            at_pixel /= tl.load(images[2] + n)
        x = plane_at(Image(images[0], image_strides[0]), plane, z, channels)
        y = plane_at(Image(images[1], image_strides[1]), plane, z, channels)
    elif COARSE == 0:
        bottom = tl.where(finest == premultiplied_by, top, bottom)
    column = strip * LANES + tl.arange(0, LANES)[None, :]
    while top < bottom:
        row = top + tl.arange(0, ROWS)[:, None]
        inside = (row < bottom) & (column < width)
        address = gradient + row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3]
        total = factor * tl.load(address, mask=inside, other=0).to(tl.float32)
        if ABS_DIFFERENCE:
            a = x.address + row.to(tl.int64) * x.strides[2] + column.to(tl.int64) * x.strides[3]
            b = y.address + row.to(tl.int64) * y.strides[2] + column.to(tl.int64) * y.strides[3]
            difference = tl.load(a, mask=inside, other=0).to(tl.float32)
            difference -= tl.load(b, mask=inside, other=0).to(tl.float32)
            total += at_pixel * tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
        down = tl.full((ROWS, 1), 1.0, tl.float32)
        across = tl.full((1, LANES), 1.0, tl.float32)
        coarse_row, coarse_column, coarse_height, coarse_width = row, column, height, width
        coarse_z, coarse_depth = z, depth
        shares = tl.full((ROWS, LANES), 1.0, tl.float32)
        for j in tl.static_range(COARSE):
            if len(valid) > 0:
                finer = Image(valid[j], valid_strides[j])
                at = coarse_z // 2, coarse_row // 2, coarse_column // 2
                size = coarse_depth, coarse_height, coarse_width
                shares /= _valid_share(finer, plane, channels, at, size, inside)
            last_row = (coarse_height % 2 == 1) & (coarse_row == coarse_height - 1)
            last_column = (coarse_width % 2 == 1) & (coarse_column == coarse_width - 1)
            down *= tl.where(last_row, 1.0, 0.5)
            across *= tl.where(last_column, 1.0, 0.5)
            if VOLUMES:
                # The one plane of an image is an odd last one.
                last_plane = (coarse_depth % 2 == 1) & (coarse_z == coarse_depth - 1)
                down *= tl.where(last_plane, 1.0, 0.5)
            coarse_z, coarse_depth = coarse_z // 2, (coarse_depth + 1) // 2
            coarse_row, coarse_column = coarse_row // 2, coarse_column // 2
            coarse_height, coarse_width = (coarse_height + 1) // 2, (coarse_width + 1) // 2
            offset = (plane.to(tl.int64) * coarse_depth + coarse_z) * coarse_height + coarse_row
            offset = offset * pitches[j] + coarse_column
            added = factors[j] * tl.load(coarse[j] + offset, mask=inside, other=0)
            total += added * (down * across * shares)
        if len(valid) > 0:
            own = plane_at(Image(valid[0], valid_strides[0]), plane, z, channels)
            total = tl.where(_exists(own, row, column, inside), total, 0.0)
        tl.store(address, total.to(gradient.dtype.element_ty), mask=inside)
        top += ROWS
