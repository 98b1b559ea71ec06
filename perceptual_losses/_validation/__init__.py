"""Checks of what the public functions are given, before any work.

Each module is about one kind of argument: `options`, `levels`, `ranges`, `images` (with `axes`) and
`masks`; they share `values` and `tensors`. No check reads the values of an image: that would wait
for the GPU, and overshoot beyond the range is normal while training. Each error says what was
given, what is allowed and what to pass.
"""

from .images import check_colour_images, check_images, size_text
from .levels import NORMALIZATIONS, check_levels, fit_levels, level_weights, smallest_side
from .masks import check_mask, check_total, check_valid, mask_weights, valid_pixels
from .options import REDUCTIONS, settings, structural_share
from .ranges import check_ranges, low_and_length, ranges_of_images
from .tensors import check_differentiable, check_plain_tensor, host_readable, kept
from .values import as_tuple, check_choice, finite_number, positive_number

__all__ = [
    "NORMALIZATIONS",
    "REDUCTIONS",
    "as_tuple",
    "check_choice",
    "check_colour_images",
    "check_differentiable",
    "check_images",
    "check_levels",
    "check_mask",
    "check_plain_tensor",
    "check_ranges",
    "check_total",
    "check_valid",
    "finite_number",
    "fit_levels",
    "host_readable",
    "kept",
    "level_weights",
    "low_and_length",
    "mask_weights",
    "positive_number",
    "ranges_of_images",
    "settings",
    "size_text",
    "smallest_side",
    "structural_share",
    "valid_pixels",
]
