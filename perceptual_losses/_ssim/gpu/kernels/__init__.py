"""The Triton kernels, and the tuples that they are given.

`value_and_gradient` computes both in one launch. For windows whose sums do not fit into the
registers `value` writes maps of derivatives and `gradient_of_maps` filters them; a value without a
gradient takes `value` only. Volumes take `plane_moments` within their planes, `depth` through them,
and `gradient_of_maps`. `levels` has the images of MS-SSIM's levels and all coarser levels in one
launch, `combine` the product of the levels' means, `accumulate_levels` the sum of their gradients,
and `sums` the kernel that adds up the tiles. All of them reach images through `loads_and_stores`,
and `depth` reaches maps through `planes`.
"""

from .accumulate_levels import accumulate_levels_kernel
from .arguments import (
    COLUMNS_PER_ACCESS,
    FLOOR,
    PLAIN,
    RELU,
    SIMPLE,
    SYMMETRIC,
    VALID,
    ZEROS,
    Constants,
    Image,
    Maps,
    Totals,
    Variant,
    Window,
)
from .combine import combine_levels_kernel
from .depth import depth_kernel
from .gradient_of_maps import gradient_kernel
from .levels import coarse_levels_kernel, downsample_kernel
from .plane_moments import plane_moments_kernel
from .sums import reduce_tiles_kernel
from .value import value_kernel
from .value_and_gradient import fused_kernel

__all__ = [
    "COLUMNS_PER_ACCESS",
    "FLOOR",
    "PLAIN",
    "RELU",
    "SIMPLE",
    "SYMMETRIC",
    "VALID",
    "ZEROS",
    "Constants",
    "Image",
    "Maps",
    "Totals",
    "Variant",
    "Window",
    "accumulate_levels_kernel",
    "coarse_levels_kernel",
    "combine_levels_kernel",
    "depth_kernel",
    "downsample_kernel",
    "fused_kernel",
    "gradient_kernel",
    "plane_moments_kernel",
    "reduce_tiles_kernel",
    "value_kernel",
]
