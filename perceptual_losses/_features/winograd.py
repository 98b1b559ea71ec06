"""3x3 convolutions of features with frozen filters, on a CPU with a fraction of the products.

This is Winograd's minimal filtering. `winograd_kernels` has the transforms. Between them
`winograd_product_kernels` multiplies the matrices of float32, and torch those of bfloat16.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .._runtime.threads import in_threads
from . import cpu

# Tiles of a step in bfloat16. Their transformed values stay in the caches until the next step.
TILES_OF_STEP = 256
# The fewest and the most tiles of a unit in float32. A thread with fewer would mostly read and
# transpose filters. With AVX-512 the most are seven blocks of rows.
LEAST_TILES, MOST_TILES = 64, 98


class _Direction:
    """The arguments of the kernels that differ between the forward and the backward.

    Attributes:
        point_order: the place of each point among the matrices.
        factors: the factor of each point.
        odd_sign: the sign of every other pixel of a tile.
        transposed: whether the matrices are to be transposed.
    """

    def __init__(
        self, point_order: Sequence[int], factors: Sequence[float], transposed: bool
    ) -> None:
        self.point_order = np.array(point_order)
        self.factors = np.array(factors, np.float32)
        self.odd_sign = np.float32(-1 if transposed else 1)
        self.transposed = transposed


class _Basis:
    """The points that polynomials are evaluated at: those given, and infinity after them.

    For each point ``p`` but 0, ``-1 / p`` is a point too. The gradient is a convolution with the
    filter turned around, as a polynomial ``x^2 g(1 / x)``. If the sign of every other
    pixel changes, it becomes ``x^2 g(-1 / x)``: at each point a multiple of the value of ``g`` at
    another one. So one set of matrices serves both directions.
    """

    def __init__(self, *points: float) -> None:
        last = len(points)
        self.span = last + 1
        # The product of the distances to the other points, by which a filter's values are divided.
        divisors = [math.prod(p - other for other in points if other != p) for p in points] + [1.0]
        rows = [[1.0, p, p * p] for p in points] + [[0.0, 0.0, 1.0]]
        self.filters = torch.tensor(rows, dtype=torch.float64)
        self.filters /= torch.tensor(divisors, dtype=torch.float64)[:, None]
        opposite = [points.index(-1 / p) if p else last for p in points] + [points.index(0)]
        factors = [
            (p * p if p else 1) * divisors[other] / own
            for p, other, own in zip((*points, 0), opposite, divisors, strict=True)
        ]
        self.forward = _Direction(range(self.span), [1.0] * self.span, False)
        self.backward = _Direction(opposite, factors, True)


BASES = {
    torch.float32: _Basis(0, 1, -1, 0.5, -2),
    # The other basis would leave 5 of the 8 bits of bfloat16.
    torch.bfloat16: _Basis(0, 1, -1),
}
# The fewest channels, and the fewest pixels times channels, that save time.
LEAST_CHANNELS = {torch.float32: 64, torch.bfloat16: 256}
LEAST_VALUES = 2**16

# The matrices in use, by the dtype, the shape and the values of the filters.
_SHARED: WeakValueDictionary[tuple[Any, ...], Tensor] = WeakValueDictionary()


@functools.cache
def _kernels() -> Any:
    """The module of kernels, which takes a moment to import."""
    from . import winograd_kernels

    return winograd_kernels


@functools.cache
def _product_kernels() -> Any:
    """The module of kernels for float32."""
    from . import winograd_product_kernels

    return winograd_product_kernels


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `convolution` takes these features and filters, and saves time."""
    return (
        cpu.supports(x, weight)
        and x.dtype == weight.dtype
        and x.dtype in BASES
        and weight.shape[2:] == (3, 3)
        and min(weight.shape[:2]) >= LEAST_CHANNELS[x.dtype]
        and x[:, 0].numel() * min(weight.shape[:2]) >= LEAST_VALUES
        and weight.shape[0] % 64 == weight.shape[1] % 64 == 0
        and not torch.is_autocast_enabled("cpu")
    )


def transform_filters(weight: Tensor) -> Tensor:
    """The matrices of filters ``(out, in, 3, 3)``, one for each pair of points ``(in, out)``.

    In float32 each matrix is split into panels of columns, ``(panels, in, PANEL)``.
    """
    filters = BASES[weight.dtype].filters
    out, channels = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1).double()
    values = torch.kron(filters, filters) @ taps
    matrices = values.to(weight.dtype).reshape(-1, channels, out)
    if weight.dtype == torch.float32:
        width = _product_kernels().PANEL
        matrices = matrices.reshape(-1, channels, out // width, width).transpose(1, 2).contiguous()
    return matrices


def filter_matrices(weight: Tensor) -> Tensor:
    """`transform_filters` of the weight: one tensor for all networks with the same weights."""
    digest = hashlib.sha256(cpu.array(weight)).digest()
    key = weight.dtype, tuple(weight.shape), digest
    matrices = _SHARED.get(key)
    if matrices is None:
        matrices = _SHARED[key] = transform_filters(weight)
    return matrices


def convolution(x: Tensor, weight: Tensor, matrices: Tensor, bias: Tensor, rectify: bool) -> Tensor:
    """``conv2d(x, weight, bias, padding=1)``, then ``relu`` if asked for.

    ``matrices`` are `transform_filters` of ``weight``. Only ``x`` may have a gradient.
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
        if torch.is_grad_enabled() or not cpu.supports(grad):
            # Torch can differentiate these operations again.
            for y in rectified:
                grad = torch.where(y <= 0, 0.0, grad)
            grad_x = functional.conv_transpose2d(grad, weight, padding=1)
        else:
            y = rectified[0] if rectified else None
            grad_x = _run(grad, y, matrices, None, False, BASES[grad.dtype].backward)
        return grad_x, None, None, None, None


def _run(
    x: Tensor,
    rectified: Tensor | None,
    matrices: Tensor,
    bias: Tensor | None,
    rectify: bool,
    direction: _Direction,
) -> Tensor:
    """The convolution of ``x``.

    If ``rectified`` is given, ``x`` is a gradient, which counts where ``rectified`` is positive.
    """
    n, channels, height, width = x.shape
    # Made with its strides: a view could not be changed in place.
    y = torch.empty(
        (n, matrices[0].numel() // channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    step = len(direction.point_order) - 2
    total = n * -(-height // step) * -(-width // step)
    images, out = _blocks(x.permute(0, 2, 3, 1)), _blocks(y.permute(0, 2, 3, 1))
    outputs = None if rectified is None else _blocks(rectified.permute(0, 2, 3, 1))
    shift = None if bias is None else _blocks(bias)
    run = _in_units if x.dtype == torch.float32 else _in_steps
    run(images, outputs, matrices, shift, rectify or None, direction, total, out)
    return y


def _in_units(
    images: Any,
    outputs: Any,
    matrices: Tensor,
    shift: Any,
    rectify: bool | None,
    direction: _Direction,
    total: int,
    out: Any,
) -> None:
    """The convolution in units: a thread takes all steps for the tiles of a unit.

    If there are few tiles, several units have the same tiles, each with its own group of the
    output's channels.
    """
    kernels, threads = _product_kernels(), torch.get_num_threads()
    blocks, out_blocks = images.shape[3], out.shape[3]
    groups, size = _units(total, out_blocks, threads)
    units = -(-total // size) * groups
    span = len(direction.point_order)
    rows = -(-size // kernels.ROWS) * kernels.ROWS
    transformed, products, panels, tiles = (
        torch.empty(threads, *shape, dtype=torch.float32, device="cpu").numpy()
        for shape in (
            (span, span, rows, blocks, kernels.C),
            (span, span, rows, out_blocks // groups, kernels.C),
            (blocks * kernels.C, kernels.PANEL),
            (span, span, kernels.C),
        )
    )
    operands = images, outputs, cpu.array(matrices), direction.transposed, shift, rectify

    def run(begin: int, end: int, share: int) -> None:
        scratch = transformed[share], products[share], panels[share], tiles[share]
        basis = direction.point_order, direction.factors, direction.odd_sign
        kernels.convolve(*operands, size, groups, begin, end, *basis, *scratch, out)

    in_threads(run, units, out.size)


def _units(total: int, out_blocks: int, threads: int) -> tuple[int, int]:
    """The number of groups of the output's channels, and the tiles of a unit."""
    candidates = []
    most = math.gcd(out_blocks, 2 ** (threads - 1).bit_length())
    for groups in (2**k for k in range(most.bit_length())):
        share = min(total, -(-total * groups // threads))
        size = -(-share // -(-share // MOST_TILES))
        # The longest thread's tiles. The filters of a group are read for each unit.
        longest = -(-(-(-total // size) * groups) // threads) * max(size, LEAST_TILES) / groups
        candidates.append((longest, groups, size))
    _, groups, size = min(candidates)
    return groups, size


def _in_steps(
    images: Any,
    outputs: Any,
    matrices: Tensor,
    shift: Any,
    rectify: bool | None,
    direction: _Direction,
    total: int,
    out: Any,
) -> None:
    """The convolution in steps, each shared by all threads. Torch multiplies the matrices."""
    kernels, span = _kernels(), len(direction.point_order)
    matrices = matrices.mT if direction.transposed else matrices
    basis = direction.point_order, direction.factors, direction.odd_sign
    count = 0
    for first in range(0, total, TILES_OF_STEP):
        if count != min(TILES_OF_STEP, total - first):
            count = min(TILES_OF_STEP, total - first)
            inputs, products = (
                matrices.new_empty(span**2, count, size) for size in matrices.shape[1:]
            )
            transformed = _blocks(inputs.unflatten(0, (span, span)))
            multiplied = _blocks(products.unflatten(0, (span, span)))

        def transform_inputs(
            begin: int, end: int, share: int, first: int = first, to: Any = transformed
        ) -> None:
            tile = np.empty((span, span, kernels.CHANNELS), np.float32)
            kernels.transform_inputs(images, outputs, first, begin, end, *basis, to, tile)

        def transform_outputs(
            begin: int, end: int, share: int, first: int = first, of: Any = multiplied
        ) -> None:
            tile = np.empty((span, span, kernels.CHANNELS), np.float32)
            kernels.transform_outputs(of, shift, rectify, first, begin, end, *basis, 0, out, tile)

        in_threads(transform_inputs, count, inputs.numel())
        torch.bmm(inputs, matrices, out=products)
        in_threads(transform_outputs, count, products.numel())


def _blocks(values: Tensor) -> Any:
    """The values as an array whose last dimension, the channels, is split into blocks."""
    return cpu.array(values).reshape(*values.shape[:-1], -1, _kernels().CHANNELS)
