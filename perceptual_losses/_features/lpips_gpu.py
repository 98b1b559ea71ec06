"""LPIPS's distance of a layer on NVIDIA's GPUs: whether Triton kernels can run, and launches."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .._ssim.gpu import backend as gpu
from .._ssim.gpu import launch as gpu_launch
from .cpu import plain

# The number of features of each image that a program holds in registers.
TILE = 4096
WARPS = 8


def suits(a: Tensor, b: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take these features; otherwise torch's operations give the same."""
    return (
        takes(a.device, a.dtype)
        and a.dtype == b.dtype
        and plain(a, b, *others)
        and all(other.device == a.device and not other.is_neg() for other in (a, b, *others))
    )


@functools.cache
def takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a device runs the kernels on features of that dtype."""
    if device.type != "cuda" or torch.version.hip is not None or gpu.unavailable(device):
        return False
    if dtype == torch.bfloat16:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return dtype in (torch.float32, torch.float16)


def distance(a: Tensor, b: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The distance of each image, ``(N,)``."""
    a, b = a.flatten(2), b.flatten(2)
    n, channels, positions = a.shape
    _, _, blocks = _tile(channels, positions)
    sums = torch.empty((n, blocks), dtype=torch.float32, device=a.device)
    arguments = *map(_features, (a, b)), weight.float(), sums, 1 / positions
    _launch(_kernels().distance_kernel, a, arguments, epsilon)
    # Without atomic additions the same features always give the same bits.
    return sums.sum(1)


def gradients(
    a: Tensor, b: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool], epsilon: float
) -> list[Tensor | None]:
    """The gradients with respect to ``a`` and ``b``, and ``None`` for one that is not needed."""
    first, second = (feature.flatten(2) for feature in ((a, b) if needed[0] else (b, a)))
    found = [torch.empty_like(feature) for feature in (first, second)[: sum(needed)]]
    features = map(_features, (first, second, found[0], found[-1]))
    arguments = *features, weight.float(), grad, grad.stride(0), 2 / first.shape[2]
    _launch(_kernels().gradient_kernel, first, arguments, epsilon, BOTH=all(needed))
    written = (gradient.view(a.shape) for gradient in found)
    return [next(written) if need else None for need in needed]


@functools.cache
def _kernels() -> Any:
    """The module of kernels. Its import needs Triton, which not every system has."""
    from . import lpips_gpu_kernels

    return lpips_gpu_kernels


def _features(tensor: Tensor) -> Any:
    return _kernels().Features(tensor, tensor.stride())


def _tile(channels: int, positions: int) -> tuple[int, int, int]:
    """The channels and the positions of a program, and the programs of an image."""
    rows = 1 << (channels - 1).bit_length()
    columns = max(1, TILE // rows)
    return rows, columns, -(-positions // columns)


def _launch(
    kernel: Any, like: Tensor, arguments: tuple[Any, ...], epsilon: float, **constants: Any
) -> None:
    n, channels, positions = like.shape
    rows, columns, blocks = _tile(channels, positions)
    with gpu_launch.on(like.device):
        gpu_launch.launch(
            *(kernel, n * blocks, WARPS, *arguments, blocks, channels, positions, epsilon),
            CHANNELS=rows,
            POSITIONS=columns,
            # Fused products and sums could round two equal norms differently.
            enable_fp_fusion=False,
            **constants,
        )
