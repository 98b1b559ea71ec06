"""The distance of features that LPIPS weighs: by a formula, and on CPUs by kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._runtime.threads import in_threads
from .._runtime.tracing import active_transform
from . import cpu

OFFSET = 1e-10
"""What the lpips package adds to the length of features."""


def calibrated_distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """For each image the mean over places of the weighted squared difference of unit features.

    Args:
        a: features ``(N, C, H, W)``.
        b: the same.
        weight: ``(C,)``.
    """
    if torch.compiler.is_compiling() or active_transform() is not None:
        return _formula(a, b, weight)
    out: Tensor = _Calibrated.apply(a, b, weight)  # type: ignore[no-untyped-call]
    return out


def _formula(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    difference = _unit(a) - _unit(b)
    weight = weight.to(difference.dtype)[:, None, None]
    return (weight * difference.square()).sum(1).mean((1, 2))


def _unit(feature: Tensor) -> Tensor:
    """Features of length 1 at each place, or zero; NaN where their squares are too large."""
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    squared = feature.square().sum(1, keepdim=True)
    # An infinite length would make them zero, and all images equal.
    squared = torch.where(squared.isinf(), torch.nan, squared)
    # Twice, because the gradient of the branch that is not taken would be NaN all the same.
    dark = squared == 0
    length = torch.where(dark, torch.ones_like(squared), squared).sqrt()
    return torch.where(dark, torch.zeros_like(feature), feature / (length + OFFSET))


class _Calibrated(torch.autograd.Function):
    """`_formula`, keeping nothing of the size of the features but themselves."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, weight)
        return _value(a, b, weight) if _suits(a, b, weight) else _formula(a, b, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        again = torch.is_grad_enabled()
        if not again and cpu.runs(grad) and _suits(a, b, weight):
            of_a, of_b = wanted
            return (
                _gradient(a, b, weight, grad) if of_a else None,
                _gradient(b, a, weight, grad) if of_b else None,
                None,
            )
        with torch.enable_grad():
            # Views, so that features compared with themselves stay two inputs.
            a, b = (f.view_as(f) if again else f.detach().requires_grad_() for f in (a, b))
            inputs = [feature for feature, want in zip((a, b), wanted, strict=True) if want]
            gradients = iter(
                torch.autograd.grad(_formula(a, b, weight), inputs, grad, create_graph=again)
            )
        return *(next(gradients) if want else None for want in wanted), None


def _suits(a: Tensor, b: Tensor, weight: Tensor) -> bool:
    """Whether the kernels are for these features."""
    return (
        cpu.runs(a, b, weight) and a.dtype == b.dtype and a.dtype in (torch.float32, torch.bfloat16)
    )


def _value(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    n, _, height, width = a.shape
    arrays, weights = [_array(feature) for feature in (a, b)], weight.float().numpy()
    sums = np.empty((n, height))

    def run(begin: int, end: int, share: int) -> None:
        cpu.kernels().calibrated(*arrays, weights, np.float32(OFFSET), begin, end, sums)

    in_threads(run, n * height, a.numel())
    return torch.from_numpy(sums.sum(1) / (height * width)).float()


def _gradient(a: Tensor, b: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """With respect to ``a``."""
    n, _, height, width = a.shape
    arrays, weights = [_array(feature) for feature in (a, b)], weight.float().numpy()
    gradient = torch.empty_like(a, memory_format=torch.channels_last)
    scales, out = (grad.float() * (2 / (height * width))).numpy(), _array(gradient)

    def run(begin: int, end: int, share: int) -> None:
        cpu.kernels().calibrated_gradient(
            *(*arrays, weights, np.float32(OFFSET), scales, begin, end, out)
        )

    in_threads(run, n * height, a.numel())
    return gradient


def _array(feature: Tensor) -> Any:
    return cpu.array(feature.permute(0, 2, 3, 1))
