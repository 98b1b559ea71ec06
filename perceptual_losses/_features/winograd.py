"""3x3 convolutions of features with frozen filters, on a CPU with a fraction of the products.

Winograd's minimal filtering, of which `cpu_kernels` has the transforms: in between are products of
matrices, which torch multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .._runtime.threads import in_threads
from . import cpu

# Tiles at a time: their values at the points stay in the caches between the steps.
TILES = 256


class _Direction:
    """Where the points are among the matrices, the factors of what goes there, and the sign of
    every other pixel of a tile.
    """

    def __init__(self, places: Sequence[int], factors: Sequence[float], sign: int) -> None:
        self.places = np.array(places)
        self.factors = np.array(factors, np.float32)
        self.sign = np.float32(sign)


class _Basis:
    """Points, and infinity after them, with ``-1 / p`` among them for each.

    The gradient is a convolution with the filter turned around, as a polynomial ``x^2 g(1 / x)``.
    With the sign of every other pixel changed it becomes ``x^2 g(-1 / x)``: at each point the value
    that ``g`` has at another one, times a number. So one set of matrices does for both directions.
    """

    def __init__(self, *points: float) -> None:
        last = len(points)
        self.span = last + 1
        # The product of the distances to the other points, by which a filter's values are divided.
        apart = [math.prod(p - other for other in points if other != p) for p in points] + [1.0]
        rows = [[1.0, p, p * p] for p in points] + [[0.0, 0.0, 1.0]]
        self.filters = torch.tensor(rows, dtype=torch.float64)
        self.filters /= torch.tensor(apart, dtype=torch.float64)[:, None]
        opposite = [points.index(-1 / p) if p else last for p in points] + [points.index(0)]
        factors = [
            (p * p if p else 1) * apart[other] / own
            for p, other, own in zip((*points, 0), opposite, apart, strict=True)
        ]
        self.forward = _Direction(range(self.span), [1.0] * self.span, 1)
        self.backward = _Direction(opposite, factors, -1)


BASES = {
    torch.float32: _Basis(0, 1, -1, 0.5, -2),
    # Of the 8 bits of bfloat16 the other basis would leave 5.
    torch.bfloat16: _Basis(0, 1, -1),
}
# Channels, and values of as many as the fewer of them, from which on there is time to save.
LEAST = {torch.float32: 64, torch.bfloat16: 256}
ENOUGH = 2**16


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` is for these features and filters."""
    return (
        cpu.runs(x, weight)
        and x.dtype == weight.dtype
        and x.dtype in BASES
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= LEAST[x.dtype]
        and x[:, 0].numel() * min(weight.shape[:2]) >= ENOUGH
        and weight.shape[0] % 64 == weight.shape[1] % 64 == 0
        and not torch.is_autocast_enabled("cpu")
    )


def at_points(weight: Tensor) -> Tensor:
    """The matrices of filters ``(out, in, 3, 3)``, one for each pair of points ``(in, out)``."""
    filters = BASES[weight.dtype].filters
    out, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1).double()
    values = torch.kron(filters, filters) @ taps
    return values.to(weight.dtype).reshape(-1, channels, out)


def convolution(x: Tensor, weight: Tensor, matrices: Tensor, bias: Tensor, rectify: bool) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)``, and ``relu`` of it if asked for, differentiable with
    respect to ``x``. ``matrices`` are `at_points` of ``weight``.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        out: Tensor = _Convolution.apply(x, weight, matrices, bias, rectify)  # type: ignore[no-untyped-call]
        return out
    return _run(x, None, matrices, bias, rectify, BASES[x.dtype].forward)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, matrices: Tensor, bias: Tensor, rectify: bool
    ) -> Tensor:
        y = _run(x, None, matrices, bias, rectify, BASES[x.dtype].forward)
        ctx.save_for_backward(weight, matrices, *[y] * rectify)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        weight, matrices, *rectified = ctx.saved_tensors
        if torch.is_grad_enabled() or not cpu.runs(grad):
            # What torch can differentiate again.
            for y in rectified:
                grad = torch.where(y <= 0, 0.0, grad)
            sent = functional.conv_transpose2d(grad, weight, padding=1)
        else:
            y = rectified[0] if rectified else None
            sent = _run(grad, y, matrices.mT, None, False, BASES[grad.dtype].backward)
        return sent, None, None, None, None


def _run(
    x: Tensor,
    rectified: Tensor | None,
    matrices: Tensor,
    bias: Tensor | None,
    rectify: bool,
    direction: _Direction,
) -> Tensor:
    kernels = cpu.kernels()
    n, c, height, width = x.shape
    span, out_channels = len(direction.places), matrices.shape[2]
    total = n * -(-height // (span - 2)) * -(-width // (span - 2))
    # No view of what is written: that could not be changed in place.
    y = torch.empty(
        (n, out_channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    images, out = _blocks(x.permute(0, 2, 3, 1)), _blocks(y.permute(0, 2, 3, 1))
    alive = None if rectified is None else _blocks(rectified.permute(0, 2, 3, 1))
    shift = None if bias is None else _blocks(bias)
    basis = direction.places, direction.factors, direction.sign
    count = 0
    for first in range(0, total, TILES):
        if count != min(TILES, total - first):
            count = min(TILES, total - first)
            points, products = (x.new_empty(span**2, count, size) for size in (c, out_channels))
            at, to = (_blocks(values.unflatten(0, (span, span))) for values in (points, products))

        def enter(begin: int, end: int, share: int, first: int = first, at: Any = at) -> None:
            tile = np.empty((span, span, kernels.CHANNELS), np.float32)
            kernels.to_points(images, alive, first, begin, end, *basis, at, tile)

        def leave(begin: int, end: int, share: int, first: int = first, to: Any = to) -> None:
            tile = np.empty((span, span, kernels.CHANNELS), np.float32)
            kernels.from_points(to, shift, rectify or None, first, begin, end, *basis, out, tile)

        in_threads(enter, count, points.numel())
        torch.bmm(points, matrices, out=products)
        in_threads(leave, count, products.numel())
    return y


def _blocks(values: Tensor) -> Any:
    """With the channels, which come last, in blocks."""
    return cpu.array(values).reshape(*values.shape[:-1], -1, cpu.kernels().CHANNELS)
