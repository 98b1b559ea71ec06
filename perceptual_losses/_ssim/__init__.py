"""One operation, several paths: two images in, the means for each level, image and channel out.

Reductions to less are part of the operation where a fast path gives the gradient, else they live
above this package. Paths never import each other; `op` gives the fast ones their gradient.
"""

import functools
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._runtime.tracing import transform
from .._runtime.warnings import warn
from . import autograd, reference
from .cpu import backend as cpu
from .definition import Result, Settings, compute_dtype
from .gpu import backend as gpu
from .reference import halve

__all__ = [
    "BACKENDS",
    "Result",
    "Settings",
    "compute_dtype",
    "halve",
    "known",
    "reduced",
    "similarity_map",
]

BACKENDS = ("auto", "reference", "numba", "triton")


def known(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    result: Result,
    levels: int | str | None,
    backend: str,
) -> list[Callable[[Tensor, Tensor], Tensor]] | None:
    """What gives the ``result``, once a GPU has given it for images like these, which takes less
    time than to check and to plan anew. Else nothing, for `reduced` to add it; or ``None`` where
    more than the images' layouts counts.

    Args:
        x: anything.
        y: anything.
        settings: what is computed.
        result: of it.
        levels: what makes other levels of the same ``result``.
        backend: one of `BACKENDS`.
    """
    on_gpu = backend == "auto" and isinstance(x, Tensor) and x.is_cuda
    if not (on_gpu or backend == "triton") or not autograd.ordinary(x, y) or sys.is_finalizing():
        return None
    return gpu.known(*autograd.kind(x, y), settings, result, levels, backend)


def reduced(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    weights: Sequence[Tensor],
    *,
    result: Result,
    backend: str,
    known: list[Callable[[Tensor, Tensor], Tensor]] | None = None,
) -> Tensor:
    """Two images' similarity or loss: the mean over each plane of the SSIM map, or the product over
    the levels of its contrast-structure factor's and at the last one SSIM's; and what ``result``
    makes of those.

    Args:
        x: images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)`` of any real dtype and layout.
        y: same shape and device.
        settings: what is computed.
        weights: for each level one weight for each map value, ``(N, 1, H', W')``, summing to one
            for each image; empty for the plain mean.
        result: ``(N, C)`` or a scalar.
        backend: one of `BACKENDS`.
        known: where the next such call finds what gives its result.

    Returns:
        The result in `compute_dtype`, differentiable with respect to ``x`` and ``y``.
    """
    path, levels = _path(x, y, settings, backend), max(1, len(result.exponents))
    # Not bool(), which torch.compile does not trace of tuples.
    distance = len(result.mix) > 0
    if path == "reference":
        found = reference.means(x, y, settings, weights, levels, distance)
        return reference.reduced(found, result)
    if torch.compiler.is_compiling():
        found = autograd.means(x, y, settings, weights, levels, distance, path, None)
        return reference.reduced(found, result)
    found = autograd.means(x, y, settings, weights, levels, distance, path, result)
    if known is not None and path == "triton":
        known.append(autograd.again(x, y, settings, levels, result))
    return found


def similarity_map(x: Tensor, y: Tensor, settings: Settings, backend: str) -> Tensor:
    """The SSIM map ``(N, C, H', W')``; arguments and dtype as for `means`.

    It is the reference's on every path: what a fused path saves is the map.
    """
    _path(x, y, settings, backend)
    return reference.similarity_map(x, y, settings)


def _path(x: Tensor, y: Tensor, settings: Settings, backend: str) -> str:
    """Which path runs: the only place that decides."""
    if not torch.compiler.is_compiling() and sys.is_finalizing():
        raise RuntimeError(
            "the interpreter is shutting down, and torch has dropped its operations: compare "
            "images before, in a function registered with atexit at the latest"
        )
    path = backend
    if backend == "auto":
        path = {"cpu": "numba", "cuda": "triton", "xpu": "triton"}.get(x.device.type, "reference")
    if path == "reference":
        return path
    fast = cpu if path == "numba" else gpu
    refused = fast.refuses(x, y, settings)
    active = transform()
    if active is not None:
        refused = f"{active} is active, and its gradient is made for autograd"
    reason = refused or fast.missing(x.device)
    if reason is None:
        return path
    if backend != "auto":
        raise ValueError(f"backend={backend!r} cannot run: {reason}; pass backend='auto'")
    if refused is None and not torch.compiler.is_compiling():
        _warn(reason, "the CPU" if path == "numba" else "the GPU", path)
    return "reference"


@functools.cache
def _warn(reason: str, device: str, package: str) -> None:
    warn(
        f"{reason}: {device} runs the reference path, which is many times slower. Install "
        f"{package}, or pass backend='reference' to choose it.",
        RuntimeWarning,
    )
