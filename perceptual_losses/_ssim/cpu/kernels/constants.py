"""What the kernels of the CPU path are told, as numbers."""

from collections import namedtuple

VALID, ZEROS, SYMMETRIC = 0, 1, 2
X, Y = 1, 2

# A tensor ``(N, C, H, W)`` or ``(N, C, D, H, W)`` with any strides: ``starts`` has the place of the
# first pixel of each plane, a volume's slices in turn, ``row`` and ``column`` the steps from there.
Image = namedtuple("Image", ["flat", "starts", "row", "column"])
