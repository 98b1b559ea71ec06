"""Triton kernels of LPIPS's distance between two layers' features, and of its gradient.

A program takes all channels of some positions of one image and keeps them in registers. So the
features are read once, and their norms are known before the unit vectors are subtracted. The
square of the difference is not expanded: its terms would cancel where images are alike.

Equal features have a distance and a gradient of exactly 0. Both norms come from one reduction in
the same order, and their ratio is then exactly 1. The kernels must be compiled without fusing
products and sums, which could round two equal norms differently.
"""

# Constants of a compilation are in capitals.
# ruff: noqa: N803

from typing import NamedTuple

import triton
import triton.language as tl


class Features(NamedTuple):
    """Features ``(N, C, P)`` at P positions, or their gradient, with the strides of N, C and P."""

    address: tl.tensor
    strides: tl.tuple


@triton.jit
def _place(blocks, channels, positions, CHANNELS: tl.constexpr, POSITIONS: tl.constexpr):
    """The image, channels and positions of a program's tile, and whether each feature exists."""
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = (tl.program_id(0) % blocks).to(tl.int64)
    channel = tl.arange(0, CHANNELS)[:, None].to(tl.int64)
    position = (block * POSITIONS + tl.arange(0, POSITIONS))[None, :]
    return image, channel, position, (channel < channels) & (position < positions)


@triton.jit
def _addresses(features, image, channel, position):
    """The addresses of a tile's features."""
    strides = features.strides
    first = features.address + image * strides[0]
    return first + channel * strides[1] + position * strides[2]


@triton.jit
def _load(features, image, channel, position, exists):
    """A tile of features in float32, zero where none exist."""
    addresses = _addresses(features, image, channel, position)
    return tl.load(addresses, mask=exists, other=0).to(tl.float32)


@triton.jit
def _load_weights(weight, channels, CHANNELS: tl.constexpr):
    # Loaded as a vector: for a column, the compiler would distribute the whole tile over the
    # threads in the way that suits the column.
    channel = tl.arange(0, CHANNELS)
    return tl.load(weight + channel, mask=channel < channels, other=0)[:, None]


@triton.jit
def _add_both(a, b, more_a, more_b):
    return a + more_a, b + more_b


@triton.jit
def _norm(squared):
    """The square root, or NaN of infinity: all unit vectors would be zero, and so equal."""
    return tl.sqrt_rn(tl.where(squared == float("inf"), float("nan"), squared))


@triton.jit
def _inverse(norm, epsilon):
    return tl.div_rn(tl.full(norm.shape, 1.0, tl.float32), norm + epsilon)


@triton.jit
def _compare(x, y, epsilon):
    """The difference of the unit vectors, both norms, and the factors that made unit vectors."""
    squared_x, squared_y = tl.reduce((x * x, y * y), 0, _add_both)
    norm_x, norm_y = _norm(squared_x), _norm(squared_y)
    inverse_x, inverse_y = _inverse(norm_x, epsilon), _inverse(norm_y, epsilon)
    # Exactly 1 for equal norms, and the difference then exactly 0 for equal features.
    ratio = tl.div_rn(inverse_y, inverse_x)
    difference = inverse_x[None, :] * tl.fma(-y, ratio[None, :], x)
    return difference, norm_x, norm_y, inverse_x, inverse_y


@triton.jit
def _through_norm(features, upstream, norm, inverse, scale):
    """The gradient with respect to features for an upstream gradient of their unit vectors.

    It is zero where all features are.
    """
    # A unit vector does not change along itself, so that part of the upstream gradient is removed.
    projection = tl.sum(features * upstream, 0)
    scale = tl.where(norm == 0, 0.0, scale * inverse)
    projection = tl.where(norm == 0, 0.0, tl.div_rn(scale * projection * inverse, norm))
    return tl.fma(-projection[None, :], features, scale[None, :] * upstream)


@triton.jit
def _store(gradient, values, image, channel, position, exists):
    values = values.to(gradient.address.dtype.element_ty)
    tl.store(_addresses(gradient, image, channel, position), values, mask=exists)


@triton.jit(do_not_specialize=["blocks", "epsilon", "share"])
def distance_kernel(
    x,
    y,
    weight,
    sums,
    share,
    blocks,
    channels,
    positions,
    epsilon,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Each program's part of the mean over positions of the weighted squared differences.

    Args:
        x: `Features` of the first images.
        y: `Features` of the second images.
        weight: the weights ``(C,)``, float32.
        sums: the output ``(N, blocks)``, float32.
        share: the weight of a position in the mean.
        blocks: programs for each image.
        channels: the number of channels.
        positions: the number of positions.
        epsilon: added to the norms.
        CHANNELS: the smallest power of two that is not below ``channels``.
        POSITIONS: positions of a program.
    """
    image, channel, position, exists = _place(blocks, channels, positions, CHANNELS, POSITIONS)
    a, b = _load(x, image, channel, position, exists), _load(y, image, channel, position, exists)
    weights = _load_weights(weight, channels, CHANNELS)
    difference, _, _, _, _ = _compare(a, b, epsilon)
    distance = tl.sum(weights * difference * difference, 0)
    tl.store(sums + tl.program_id(0), share * tl.sum(distance, 0))


@triton.jit(do_not_specialize=["blocks", "epsilon", "factor", "grad_stride"])
def gradient_kernel(
    x,
    y,
    of_x,
    of_y,
    weight,
    grad,
    grad_stride,
    factor,
    blocks,
    channels,
    positions,
    epsilon,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
    BOTH: tl.constexpr,
):
    """The gradient of `distance_kernel`'s mean with respect to ``x``, and to ``y`` if ``BOTH``.

    ``grad`` is the upstream gradient of each image. ``factor`` is twice the weight of a position in
    the mean. The other arguments are those of `distance_kernel`.
    """
    image, channel, position, exists = _place(blocks, channels, positions, CHANNELS, POSITIONS)
    a, b = _load(x, image, channel, position, exists), _load(y, image, channel, position, exists)
    weights = _load_weights(weight, channels, CHANNELS)
    difference, norm_x, norm_y, inverse_x, inverse_y = _compare(a, b, epsilon)
    upstream = weights * difference
    scale = factor * tl.load(grad + image * grad_stride)
    values = _through_norm(a, upstream, norm_x, inverse_x, scale)
    _store(of_x, values, image, channel, position, exists)
    if BOTH:
        values = _through_norm(b, upstream, norm_y, inverse_y, -scale)
        _store(of_y, values, image, channel, position, exists)
