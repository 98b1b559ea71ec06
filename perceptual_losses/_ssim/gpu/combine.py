"""The launches that combine levels: the product of their means, the sum of their gradients."""

from __future__ import annotations

import math

from ..backend import Auxiliary, Layout
from ..request import FLOOR, Request
from .launch import Allocation, Buffer, Launch
from .level import beside, load_kernels
from .programs import Machine, ceil_div

# Rows and columns of a program that adds up levels.
ROWS, COLUMNS = 4, 256
# Planes of a program that multiplies the means of their levels.
PLANES = 32
# The most programs on each multiprocessor that add up levels.
ACCUMULATING = 16


def backward_launch(
    machine: Machine,
    gradients: tuple[Layout, ...],
    grad: Layout,
    images: tuple[Layout, ...],
    *,
    auxiliary: Auxiliary,
    combined: bool,
    premultiplied_by: float,
) -> Launch:
    """The launch that scales the levels' gradients and adds them up, in the finest one's place.

    Its tensors have these names:

    * "grad", and "derivatives" if the levels are combined;
    * "x", "y" and "ranges0", the last if images have their own ranges, for the gradient of L1;
    * "valid0", ... for all levels but the coarsest, if only some pixels are valid;
    * "level0", "level1", ...
    """
    fine, *coarse = gradients
    n, c, *depths, height, width = fine.shape
    depth = math.prod(depths)
    strips = ceil_div(width, COLUMNS)
    # No more programs than keep the multiprocessors busy: in most calls they have nothing to do.
    busy = ceil_div(ACCUMULATING * machine.multiprocessors, n * c * depth * strips)
    bands = min(ceil_div(height, ROWS), busy)
    rows = ROWS * ceil_div(ceil_div(height, ROWS), bands)
    bands = ceil_div(height, rows)
    names = ("x", "y", *["ranges0"] * len(auxiliary.ranges)) if images else ()
    levels = [beside(j, auxiliary).valid for j in range(len(coarse))]
    valid = [level for level in levels if level is not None]
    return Launch(
        *(load_kernels().accumulate_levels_kernel, n * c * depth * strips * bands, 4),
        Buffer("level0"),
        tuple(Buffer(f"level{j}") for j in range(1, len(gradients))) or (Buffer("level0"),),
        *(tuple(level.strides[-2] for level in coarse) or (0,), Buffer("grad")),
        *(Buffer("derivatives" if combined else "grad"), tuple(map(Buffer, names))),
        *(fine.strides, (0, 0, 0, *grad.strides)[-3:], tuple(image.strides for image in images)),
        *(tuple(level.address for level in valid), tuple(level.strides for level in valid)),
        *(strips, bands, rows, n * c, depth, c, height, width, premultiplied_by),
        COARSE=len(coarse),
        PRODUCT=combined,
        ROWS=ROWS,
        LANES=COLUMNS,
        ALIGNED_WIDTH=width % load_kernels().COLUMNS_PER_ACCESS.value == 0,
        ABS_DIFFERENCE=bool(images),
        RANGED=bool(images and auxiliary.ranges),
    )


def combine_launch(shape: tuple[int, ...], request: Request) -> Launch:
    """The launch that multiplies the powers of the means ``(levels, N, C)``."""
    exponents, normalize, reduction = request.exponents, request.normalize, request.reduction
    mix = request.mix or ()
    kernels = load_kernels()
    codes = {
        "floor": kernels.FLOOR,
        "relu": kernels.RELU,
        "simple": kernels.SIMPLE,
        None: kernels.PLAIN,
    }
    planes = shape[1] * shape[2]
    total = reduction != "none"
    programs, warps = (1, 8) if total else (ceil_div(planes, PLANES), 1)
    return Launch(
        *(
            kernels.combine_levels_kernel,
            programs,
            warps,
            Buffer("means"),
            Buffer("value"),
            Buffer("derivatives"),
        ),
        *(exponents, FLOOR, planes, *(mix or (1.0, 0.0))),
        NORMALIZE=codes[normalize].value,
        LANES=PLANES * warps,
        TOTAL=total,
        LOSS=reduction == "loss",
        MIXED=bool(mix),
        allocations=(
            Allocation("value", () if total else shape[1:]),
            Allocation("derivatives", shape),
        ),
    )
