"""Numba kernels of the CPU path."""

from .constants import SYMMETRIC, VALID, ZEROS, Image
from .images_march import march
from .levels import add_sign, distance, halve, sweep
from .volumes_march import march_volume

__all__ = [
    *("SYMMETRIC", "VALID", "ZEROS", "Image"),
    *("add_sign", "distance", "halve", "march", "march_volume", "sweep"),
]
