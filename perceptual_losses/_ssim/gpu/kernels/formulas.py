"""Formulas of the GPU path: moments under the window, SSIM, its derivatives and the gradients.

They are those of the reference path. With ``d = x - y`` and ``t = x + y``, less a constant near
their offset in the tile (variances do not change with it, means add it back),

    a = mu_d^2 / (mu_t^2 + mu_d^2 + 2 C1)         luminance          = 1 - 2 a
    b = var_d / (var_t + var_d + 2 C2)            contrast_structure = 1 - 2 b

    V_d = 1/2 dS/dE[d^2] = -(1 - b) luminance / (var_t + var_d + 2 C2)
    V_t = 1/2 dS/dE[t^2] = b luminance / (var_t + var_d + 2 C2)
    M_d = 1/4 dS/dmu_d, with the share through var_d = E[d^2] - mu_d^2      M_t = 1/4 dS/dmu_t alike

    dx = 4 (g * (M_t + M_d) + t (g * V_t) + d (g * V_d))
    dy = 4 (g * (M_t - M_d) + t (g * V_t) - d (g * V_d))
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from . import scratch
from .addresses import is_inside, mirrored
from .arguments import SYMMETRIC


@triton.jit
def contrasts(a, b, root, offsets, MIXED: tl.constexpr):
    """Difference and total of pixels, less their offsets, times ``root``.

    With ``MIXED`` no other pixels have the difference of equal ones.
    """
    # Pixels far from zero and close to each other lose no digits in one rounding.
    total = tl.fma(a, root, offsets.bias) + tl.fma(b, root, offsets.bias)
    equal = -offsets.d * root
    difference = tl.fma(a - b, root, equal)
    if MIXED:
        bit = 2**-23 * tl.abs(equal)
        neighbour = tl.where(a > b, equal + bit, equal - bit)
        difference = tl.where((difference == equal) & (a != b), neighbour, difference)
    return difference, total


@triton.jit
def add_row(sums, values, window, K: tl.constexpr):
    """Adds a row to the sums in flight: ``DOWN`` of each column, the first of them complete then.

    The sums move up by one with each row: a multiply-add has its own destination, so that moving
    costs next to nothing, and the loop over the rows needs no copies of its body.
    """
    moved = ()
    for e in tl.static_range(K.COLUMNS):
        row = window.across[K.ACROSS // 2] * values[e + K.ACROSS // 2]
        for k in tl.static_range(K.ACROSS // 2):
            row += window.across[k] * (values[e + k] + values[e + K.ACROSS - 1 - k])
        for k in tl.static_range(K.DOWN - 1):
            tap = window.down[min(k, K.DOWN - 1 - k)]
            moved = moved + (sums[e * K.DOWN + k + 1] + tap * row,)
        moved = moved + (window.down[0] * row,)
    return moved


@triton.jit
def _squares(values):
    squares = ()
    for k in tl.static_range(len(values)):
        squares = squares + (values[k] * values[k],)
    return squares


@triton.jit
def add_moments(sums, row, first, window, K: tl.constexpr):
    """Adds a row of pixels from scratch memory to the sums of d, d^2, t and t^2."""
    updated = ()
    for k in tl.static_range(2):
        values = scratch.read(row, k * K.PITCH, first, K.ACROSS, K)
        updated = updated + (
            add_row(sums[2 * k], values, window, K),
            add_row(sums[2 * k + 1], _squares(values), window, K),
        )
    return updated


@triton.jit
def _inverse(values, FAST: tl.constexpr):
    """1 / values, which are positive, to 2 ulp. PTX has one instruction for it, to which values
    beyond 2^126 are infinite.
    """
    if FAST:
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [values], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        root = tl.rsqrt(values)
        inverse = root * root
    return inverse


@triton.jit
def _at_position(image, row, column, inside, K: tl.constexpr):
    """The value of a map at positions, zero where not ``inside``."""
    address = image.address + row.to(tl.int64) * image.strides[2]
    address += column.to(tl.int64) * image.strides[3]
    anywhere: tl.constexpr = K.PADDING == SYMMETRIC
    return tl.load(address) if anywhere else tl.load(address, mask=inside, other=0)


@triton.jit
def _derivatives(region, d, t, e_dd, e_tt, row, column, K: tl.constexpr):
    """Half of 1 - S of a row of the map, and M_d, M_t, V_d and V_t, the last two over the window's
    root, zero beside the map; all times their weight.

    ``d`` and ``t`` are means over that root: as the pixels are times it, their squares are right.
    With an infinite C1 the luminance is 1, and its derivatives are 0.
    """
    root = region.constants.root
    inside = is_inside(row, column, region.map_size)
    # Whether the derivatives have to be zero beside the map.
    MASKED: tl.constexpr = K.GRADIENTS > 0 and K.PADDING != SYMMETRIC
    square = root * root
    if K.PADDING == SYMMETRIC:
        row = mirrored(row, region.map_size[0])
        column = mirrored(column, region.map_size[1])
    if K.PARTIAL:
        coverage = _at_position(region.coverage, row, column, inside, K)
        d, t, e_dd, e_tt = coverage * d, coverage * t, coverage * e_dd, coverage * e_tt
    mu_d, mu_t = square * d, square * t
    # Negative ones come from rounding, where pixels lie far from the offset.
    var_d = tl.maximum(e_dd - mu_d * d, 0.0, tl.PropagateNan.ALL)
    var_t = tl.maximum(e_tt - mu_t * t, 0.0, tl.PropagateNan.ALL)
    steep = _inverse(var_t + var_d + 2 * region.constants.c2, K.FAST_RECIPROCAL)
    if MASKED:
        steep = tl.where(inside, steep, 0.0)
    b = var_d * steep
    value = 1 - 2 * b
    full_d, full_t = root * d + region.offsets.d, root * t + region.offsets.t
    dd = full_d * full_d
    inverse = _inverse(full_t * full_t + dd + 2 * region.constants.c1, K.FAST_RECIPROCAL)
    if MASKED:
        inverse = tl.where(inside, inverse, 0.0)
    a = dd * inverse
    scaled = value * inverse
    m_t = a * scaled * full_t
    m_d = (a * scaled - scaled) * full_d
    steep *= 1 / root - 2 / root * a
    v_t = b * steep
    v_d = v_t - steep
    m_d -= mu_d * v_d
    m_t -= mu_t * v_t
    # Three ways to write the same, of which the compiler makes more or fewer instructions, and
    # needs more registers than there are or no more.
    if K.GRADIENTS > 0:
        deficit = b + a * value
    elif K.COLUMNS < 4:
        deficit = a + b * (1 - 2 * a)
    else:
        deficit = a - b * (2 * a - 1)
    if K.PARTIAL and K.MAP:
        # A position without a valid centre has no part in it.
        down, across = row + region.centre[0], column + region.centre[1]
        exists = _at_position(region.valid, down, across, inside, K)
        deficit = tl.where(exists, deficit, 0.0)
        coverage = tl.where(exists, coverage, 0.0)
    if K.WEIGHTED or K.PARTIAL:
        weight = 1.0
        if K.WEIGHTED:
            weight = _at_position(region.weight, row, column, inside, K)
            deficit *= weight
        if K.PARTIAL:
            weight *= coverage
        m_d *= weight
        m_t *= weight
        v_d *= weight
        v_t *= weight
    return deficit, m_d, m_t, v_d, v_t


@triton.jit
def row_of_map(region, moments, deficits, counted, row, column, K: tl.constexpr):
    """A row of the map from complete moments; ``column`` is each thread's first.

    Returns:
        Each column's sum of half of 1 - S, with this row where ``counted``; and the derivatives of
        each column: M (M_t for two gradients), V_d, V_t and then M_d; or without a gradient S.
    """
    sums, all_s, all_m, all_v_d, all_v_t, all_m_d = (), (), (), (), (), ()
    for e in tl.static_range(K.COLUMNS):
        deficit, m_d, m_t, v_d, v_t = _derivatives(
            *(region, moments[0][e * K.DOWN], moments[2][e * K.DOWN]),
            *(moments[1][e * K.DOWN], moments[3][e * K.DOWN], row, column + e, K),
        )
        inside = counted & (row >= 0) & (row < region.map_size[0])
        sums = sums + (tl.where(inside, deficits[e] + deficit, deficits[e]),)
        # Reciprocals have roundings.
        s = tl.clamp(1 - 2 * deficit, -1.0, 1.0, tl.PropagateNan.ALL)
        all_s = all_s + (s,)
        all_m = all_m + (m_t if K.GRADIENTS == 2 else m_t + m_d,)
        all_v_d, all_v_t, all_m_d = all_v_d + (v_d,), all_v_t + (v_t,), all_m_d + (m_d,)
    if K.GRADIENTS == 2:
        values = (all_m, all_v_d, all_v_t, all_m_d)
    elif K.GRADIENTS == 1:
        values = (all_m, all_v_d, all_v_t)
    else:
        values = (all_s,)
    return sums, values


@triton.jit
def gradients_of(d, t, filtered, equal, gradient_scale, abs_difference_scale, K: tl.constexpr):
    """A row of the gradients to both images, by column.

    Args:
        d: `contrasts` of the pixels, the difference.
        t: `contrasts` of the pixels, the total.
        filtered: sums of the derivatives under the window.
        equal: difference of equal pixels.
        gradient_scale: factor of the gradients of the map's sum.
        abs_difference_scale: factor of those of the sum of |x - y|, which a mix has.
        K: variant of the kernel.
    """
    x_gradient, y_gradient = (), ()
    for e in tl.static_range(K.COLUMNS):
        common = filtered[0][e * K.DOWN] + t[e] * filtered[2][e * K.DOWN]
        opposed = d[e] * filtered[1][e * K.DOWN]
        if K.GRADIENTS == 2:
            opposed += filtered[3][e * K.DOWN]
        to_x = 4 * gradient_scale * (common + opposed)
        to_y = 4 * gradient_scale * (common - opposed)
        if K.MIXED:
            negative = tl.where(d[e] < equal, -abs_difference_scale, 0.0)
            sign = tl.where(d[e] > equal, abs_difference_scale, negative)
            to_x, to_y = to_x + sign, to_y - sign
        x_gradient, y_gradient = x_gradient + (to_x,), y_gradient + (to_y,)
    return x_gradient, y_gradient
