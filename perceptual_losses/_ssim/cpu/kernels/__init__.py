"""Numba kernels of the CPU path."""

from .constants import SYMMETRIC, VALID, ZEROS, Image
from .levels import add_sign, distance, halve, sweep
from .march import march
from .march_volume import march_volume

__all__ = [
    "SYMMETRIC",
    "VALID",
    "ZEROS",
    "Image",
    "add_sign",
    "distance",
    "halve",
    "march",
    "march_volume",
    "sweep",
]
