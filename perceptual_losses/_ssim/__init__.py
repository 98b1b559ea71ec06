"""One operation, several paths: two images in, the mean for each image and channel out.

Reduction over channels and images, the weights of levels and ``1 -`` live above this package and
are written once. Paths never import each other; `op` gives the fast ones their gradient.
"""

import functools
import warnings

import torch
from torch import Tensor

from . import cpu, op, reference
from .contract import Settings, compute_dtype
from .reference import halve

__all__ = ["BACKENDS", "Settings", "compute_dtype", "halve", "level", "similarity_map"]

BACKENDS = ("auto", "reference", "numba")


def level(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    weight: Tensor | None,
    *,
    contrast: bool,
    pool: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean over each plane of the SSIM map, and the images of the next coarser level.

    Args:
        x: images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)`` of any real dtype and layout.
        y: same shape and device.
        settings: what is computed.
        weight: one weight for each map value, ``(N, 1, H', W')``, summing to one for each image;
            ``None`` for the plain mean.
        contrast: the mean of the map's contrast-structure factor instead.
        pool: whether the next level is wanted.
        backend: one of `BACKENDS`.

    Returns:
        The mean ``(N, C)`` and `halve` of both images (empty without ``pool``), in
        `compute_dtype` and differentiable with respect to ``x`` and ``y``.
    """
    run = op.level if _fast(x, backend) else reference.level
    return run(x, y, settings, weight, contrast, pool)


def similarity_map(x: Tensor, y: Tensor, settings: Settings, backend: str) -> Tensor:
    """The SSIM map ``(N, C, H', W')``; arguments and dtype as for `level`.

    It is the reference's on every path: what a fused path saves is the map.
    """
    _fast(x, backend)
    return reference.similarity_map(x, y, settings)


def _fast(x: Tensor, backend: str) -> bool:
    """Whether the kernels of the device run, or the reference: the only place that decides."""
    if backend == "reference":
        return False
    other = None
    if x.device.type != "cpu":
        other = f"the images are on {x.device} and it runs on the CPU"
    elif x.dim() != 4:
        other = "it takes images (N, C, H, W), and these are volumes"
    elif not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        other = "a torch.func transform is active, and its gradient is made for autograd"
    reason = other or _missing()
    if backend == "numba" and reason is not None:
        raise ValueError(f"backend='numba' cannot run: {reason}; pass backend='auto'")
    if reason is not None and other is None:
        _warn(reason)
    return reason is None


def _missing() -> str | None:
    if not cpu.INSTALLED:
        return "Numba is not installed"
    # A compiled call takes it that what is installed can be imported: importing is not traced.
    return None if torch.compiler.is_compiling() else cpu.broken()


def _warn(reason: str) -> None:
    if not torch.compiler.is_compiling():
        _warn_once(reason)


@functools.cache
def _warn_once(reason: str) -> None:
    warnings.warn(
        f"{reason}: the CPU runs the reference path, which is many times slower. Install numba, "
        "or pass backend='reference' to choose it.",
        RuntimeWarning,
        stacklevel=6,
    )
