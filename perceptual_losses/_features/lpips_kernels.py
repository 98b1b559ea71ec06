"""Numba kernels of LPIPS's distance between two layers' features, and of its gradient.

Arrays of features are ``(N, H, W, C)``, of float32 or of the bits of bfloat16: the channels of a
pixel lie side by side.
"""

import math

import numpy as np

from .._runtime.numba_kernels import entry, inlined, ordered
from .float32_kernels import ONE, ZERO, from_float32, to_float32

NAN, INFINITY = np.float32(math.nan), np.float32(math.inf)


@ordered
def _difference(a, b):
    """Exactly zero for equal products, where a fused multiply-add would leave a rounding error."""
    return a - b


@inlined
def _norm(squared):
    """The square root, or NaN of infinity: all unit vectors would be zero, and so equal."""
    return NAN if squared == INFINITY else math.sqrt(squared)


@entry
def row_distances(a, b, weight, epsilon, begin, end, sums):
    """The weighted squared differences of unit vectors, summed over each row of an image.

    Args:
        a: features ``(N, H, W, C)``, of float32 or the bits of bfloat16.
        b: features like ``a``.
        weight: the channels' weights ``(C,)``.
        epsilon: added to the norms.
        begin: the first row, counted over all images.
        end: the row after the last.
        sums: the output ``(N, H)``.
    """
    _, height, width, channels = a.shape
    for index in range(begin, end):
        image, row = index // height, index % height
        total = 0.0
        for column in range(width):
            norm_a, norm_b = ZERO, ZERO
            for k in range(channels):
                x, y = to_float32(a[image, row, column, k]), to_float32(b[image, row, column, k])
                norm_a += x * x
                norm_b += y * y
            inverse_a = ONE / (_norm(norm_a) + epsilon)
            inverse_b = ONE / (_norm(norm_b) + epsilon)
            distance = ZERO
            for k in range(channels):
                x, y = to_float32(a[image, row, column, k]), to_float32(b[image, row, column, k])
                difference = _difference(x * inverse_a, y * inverse_b)
                distance += weight[k] * difference * difference
            total += distance
        sums[image, row] = total


@entry
def gradient_rows(a, b, weight, epsilon, scales, begin, end, gradient):
    """The gradient with respect to ``a`` of half of each image's sum of `row_distances`.

    It is zero where all features of ``a`` are. ``scales`` ``(N,)`` multiplies each image's
    gradient; the other arguments are those of `row_distances`.
    """
    _, height, width, channels = a.shape
    for index in range(begin, end):
        image, row = index // height, index % height
        for column in range(width):
            norm_a, norm_b = ZERO, ZERO
            for k in range(channels):
                x, y = to_float32(a[image, row, column, k]), to_float32(b[image, row, column, k])
                norm_a += x * x
                norm_b += y * y
            norm_a = _norm(norm_a)
            inverse_a = ONE / (norm_a + epsilon)
            inverse_b = ONE / (_norm(norm_b) + epsilon)
            # A unit vector does not change along x: that part of the upstream gradient goes.
            projection = ZERO
            for k in range(channels):
                x, y = to_float32(a[image, row, column, k]), to_float32(b[image, row, column, k])
                projection += x * (weight[k] * _difference(x * inverse_a, y * inverse_b))
            scale = ZERO if norm_a == ZERO else scales[image] * inverse_a
            projection = ZERO if norm_a == ZERO else scale * projection * inverse_a / norm_a
            for k in range(channels):
                x, y = to_float32(a[image, row, column, k]), to_float32(b[image, row, column, k])
                upstream = weight[k] * _difference(x * inverse_a, y * inverse_b)
                gradient[image, row, column, k] = from_float32(
                    scale * upstream - projection * x, gradient[image, row, column, k]
                )
