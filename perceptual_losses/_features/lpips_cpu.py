"""LPIPS's distance of a layer on CPUs: whether Numba kernels can run, and their calls."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._runtime.threads import in_threads
from . import cpu


def suits(a: Tensor, b: Tensor, *others: Tensor) -> bool:
    """Whether the kernels take these features; otherwise torch's operations give the same."""
    return (
        cpu.supports(a, b, *others)
        and a.dtype == b.dtype
        and a.dtype in (torch.float32, torch.bfloat16)
    )


def distance(a: Tensor, b: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The distance of each image, ``(N,)``."""
    n, _, height, width = a.shape
    arrays, weights = [_array(feature) for feature in (a, b)], weight.float().numpy()
    sums, kernels = np.empty((n, height)), _kernels()

    def run(begin: int, end: int, share: int) -> None:
        kernels.row_distances(*arrays, weights, np.float32(epsilon), begin, end, sums)

    in_threads(run, n * height, a.numel())
    return torch.from_numpy(sums.sum(1) / (height * width)).float()


def gradients(
    a: Tensor, b: Tensor, weight: Tensor, grad: Tensor, needed: tuple[bool, bool], epsilon: float
) -> list[Tensor | None]:
    """The gradients with respect to ``a`` and ``b``, and ``None`` for one that is not needed."""
    orders = (a, b), (b, a)
    return [
        _gradient(*order, weight, grad, epsilon) if need else None
        for order, need in zip(orders, needed, strict=True)
    ]


@functools.cache
def _kernels() -> Any:
    """The module of kernels, which takes a moment to import."""
    from . import lpips_kernels

    return lpips_kernels


def _gradient(a: Tensor, b: Tensor, weight: Tensor, grad: Tensor, epsilon: float) -> Tensor:
    """The gradient with respect to ``a``."""
    n, _, height, width = a.shape
    arrays, weights = [_array(feature) for feature in (a, b)], weight.float().numpy()
    gradient = torch.empty_like(a, memory_format=torch.channels_last)
    scales, out = (grad.float() * (2 / (height * width))).numpy(), _array(gradient)
    kernels = _kernels()

    def run(begin: int, end: int, share: int) -> None:
        kernels.gradient_rows(*(*arrays, weights, np.float32(epsilon), scales, begin, end, out))

    in_threads(run, n * height, a.numel())
    return gradient


def _array(feature: Tensor) -> Any:
    """The features with their channels last."""
    return cpu.array(feature.permute(0, 2, 3, 1))
