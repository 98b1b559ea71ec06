"""One operation, several paths: two images in, the means for each level, image and channel out.

Reduction over channels and images, the weights of levels and ``1 -`` live above this package and
are written once. Paths never import each other; `op` gives the fast ones their gradient.
"""

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from . import cpu, op, reference
from .contract import Settings, compute_dtype
from .reference import halve

__all__ = ["BACKENDS", "Settings", "compute_dtype", "halve", "means", "similarity_map"]

BACKENDS = ("auto", "reference", "numba")


def means(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    weights: Sequence[Tensor],
    *,
    levels: int,
    backend: str,
) -> Tensor:
    """The mean over each plane of the SSIM map at one level, or of its factors at several.

    Args:
        x: images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)`` of any real dtype and layout.
        y: same shape and device.
        settings: what is computed.
        weights: for each level one weight for each map value, ``(N, 1, H', W')``, summing to one
            for each image; empty for the plain mean.
        levels: how many. Each has `halve` of the images of the one before.
        backend: one of `BACKENDS`.

    Returns:
        ``(levels, N, C)``: the mean of the contrast-structure factor, but at the last level that
        of SSIM; in `compute_dtype` and differentiable with respect to ``x`` and ``y``.
    """
    run = op.means if _fast(x, backend) else reference.means
    return run(x, y, settings, weights, levels)


def similarity_map(x: Tensor, y: Tensor, settings: Settings, backend: str) -> Tensor:
    """The SSIM map ``(N, C, H', W')``; arguments and dtype as for `means`.

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
