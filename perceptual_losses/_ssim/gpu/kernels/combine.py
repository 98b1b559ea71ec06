"""The kernel for the product of the means of MS-SSIM's levels."""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, RUF005

import triton
import triton.language as tl

from .arguments import FLOOR, RELU, SIMPLE


@triton.jit
def _raised(base, exponent):
    """A power, of negative numbers too where the exponent is a whole one."""
    size = tl.exp2(exponent * tl.log2(tl.abs(base)))
    half = 0.5 * exponent
    signed = tl.where(half == tl.floor(half), size, -size)
    signed = tl.where(exponent == tl.floor(exponent), signed, float("nan"))
    power = tl.where(base < 0, signed, size)
    # The logarithm of zero times zero does not give its power.
    return tl.where(exponent == 0, 1.0, tl.where(exponent == 1, base, power))


@triton.jit
def _power(mean, exponent, floor, NORMALIZE: tl.constexpr):
    """A level's factor in the product, and its derivative."""
    base, slope = mean, tl.full(mean.shape, 1.0, tl.float32)
    dead = tl.full(mean.shape, 0, tl.int1)
    if NORMALIZE == FLOOR:
        below = floor * floor / (2 * floor - tl.minimum(mean, floor))
        base = tl.where(mean <= floor, below, mean)
        slope = tl.where(mean <= floor, below * below / (floor * floor), 1.0)
    elif NORMALIZE == SIMPLE:
        base, slope = 0.5 * (mean + 1), 0.5 * slope
        # The slope of a power at zero would be infinite.
        dead = base <= 0
    elif NORMALIZE == RELU:
        dead = mean <= 0
    base, slope = tl.where(dead, 1.0, base), tl.where(dead, 0.0, slope)
    factor = _raised(base, exponent)
    derivative = exponent * _raised(base, exponent - 1)
    return tl.where(dead, 0.0, factor), tl.where(exponent == 0, 0.0, derivative * slope)


@triton.jit(do_not_specialize=["exponents", "floor", "planes"])
def combine_levels_kernel(
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

    ``means`` and ``derivatives`` have a row of ``planes`` for each level. For the ``TOTAL`` of all
    planes one program writes their mean, or 1 minus that for a ``LOSS``. A loss ``MIXED`` with the
    mean of |x - y|, which is the last row of ``means``, has the factors ``structural`` and ``l1``,
    and the derivatives are its own.
    """
    first = tl.program_id(0) * LANES
    total = tl.zeros((LANES,), tl.float32)
    abs_difference_total = tl.zeros((LANES,), tl.float32)
    while first < planes:
        plane = first + tl.arange(0, LANES)
        inside = plane < planes
        factors, slopes = (), ()
        for j in tl.static_range(len(exponents)):
            mean = tl.load(means + j * planes + plane, mask=inside, other=1)
            factor, slope = _power(mean, exponents[j], floor, NORMALIZE)
            factors = factors + (factor,)
            slopes = slopes + (slope,)
        combined = factors[0]
        for j in tl.static_range(1, len(exponents)):
            combined *= factors[j]
        if TOTAL:
            total += tl.where(inside, combined, 0.0)
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
            abs_difference = tl.load(means + last_row, mask=inside, other=0)
            abs_difference_total += abs_difference
            derivative = l1 / planes.to(tl.float32) if TOTAL else l1
            derivative = tl.zeros_like(abs_difference_total) + derivative
            tl.store(derivatives + last_row, derivative, mask=inside)
            combined = structural * (1 - combined) + l1 * abs_difference
        if not TOTAL:
            tl.store(value + plane, combined, mask=inside)
        first += LANES * tl.num_programs(0)
    if TOTAL:
        mean = tl.div_rn(tl.sum(total, 0), planes.to(tl.float32))
        if LOSS:
            mean = 1 - mean
        if MIXED:
            abs_difference_mean = tl.sum(abs_difference_total, 0) / planes.to(tl.float32)
            mean = structural * mean + l1 * abs_difference_mean
        tl.store(value, mean)
