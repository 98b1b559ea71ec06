"""One operation, several paths: two images in, per-image and per-channel means out.

Reduction over channels and images, the pyramid, level weights and ``1 -`` live above this package
and are written once. A path is a module with the functions `means` and `similarity_map` below,
without their argument ``backend``; paths never import each other.
"""

from types import ModuleType

from torch import Tensor

from . import reference
from .contract import Settings, compute_dtype

__all__ = ["BACKENDS", "Settings", "compute_dtype", "means", "similarity_map"]

BACKENDS = ("auto", "reference")


def means(
    x: Tensor, y: Tensor, settings: Settings, weight: Tensor | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Means over each plane of the SSIM map and of its contrast-structure factor.

    Args:
        x: images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)`` of any real dtype and layout.
        y: same shape and device.
        settings: what is computed.
        weight: one weight for each map value, ``(N, 1, H', W')``, summing to one for each image;
            ``None`` for the plain mean.
        backend: one of `BACKENDS`.

    Returns:
        Two ``(N, C)`` tensors of `compute_dtype`, differentiable with respect to ``x`` and ``y``.
    """
    values: tuple[Tensor, Tensor] = _choose(backend).means(x, y, settings, weight)
    return values


def similarity_map(x: Tensor, y: Tensor, settings: Settings, backend: str) -> Tensor:
    """The SSIM map ``(N, C, H', W')``; arguments and dtype as for `means`."""
    values: Tensor = _choose(backend).similarity_map(x, y, settings)
    return values


def _choose(backend: str) -> ModuleType:
    """The path that runs: the only place where this is decided."""
    if backend in ("auto", "reference"):
        return reference
    raise ValueError(f"backend={backend!r} is unknown: pass one of {BACKENDS}")
