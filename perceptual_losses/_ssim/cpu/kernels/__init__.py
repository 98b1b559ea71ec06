"""Numba kernels of the CPU path."""

from .arguments import SYMMETRIC, VALID, ZEROS, Constants, Image, Variant, Window
from .filters import ROWS
from .levels import abs_difference, accumulate_level, add_sign, halve
from .march import march
from .march_volume import march_volume
from .valid import accumulate_valid, halve_valid

__all__ = [
    "ROWS",
    "SYMMETRIC",
    "VALID",
    "ZEROS",
    "Constants",
    "Image",
    "Variant",
    "Window",
    "abs_difference",
    "accumulate_level",
    "accumulate_valid",
    "add_sign",
    "halve",
    "halve_valid",
    "march",
    "march_volume",
]
