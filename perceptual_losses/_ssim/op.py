"""The means as an operation with its gradient, the same for every fast path.

The kernels give the means and their derivatives in one pass, so that the backward is a
multiplication. Second derivatives are those of the reference path.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .contract import Settings, compute_dtype

MEANS = "perceptual_losses::ssim_means"
SWEEP = "perceptual_losses::ssim_sweep"

# What `want` asks for: the gradient with respect to either image, or their sum for both.
X, Y = 1, 2

torch.library.define(
    MEANS,
    "(Tensor x, Tensor y, Tensor[] weights, float[] window, float low, float c1, float c2, "
    "str padding, int levels, int want) -> (Tensor means, Tensor[] grad_x, Tensor[] grad_y)",
)
# In place, because the gradient is the only thing of an image's size that a step keeps.
torch.library.define(SWEEP, "(Tensor(a!)[] gradients, Tensor scale) -> ()")


def halved(shape: Sequence[int]) -> list[int]:
    return [*shape[:2], *[(side + 1) // 2 for side in shape[2:]]]


def _fake_means(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    window: Sequence[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    levels: int,
    want: int,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    gradients = []
    for image, bit in ((x, X), (y, Y)):
        found = [torch.empty_like(image)] if want & bit else []
        while found and len(found) < levels:
            found.append(image.new_empty(halved(found[-1].shape)))
        gradients.append(found)
    return x.new_empty([levels, *x.shape[:2]]), gradients[0], gradients[1]


torch.library.register_fake(MEANS, _fake_means)
torch.library.register_fake(SWEEP, lambda gradients, scale: None)


def means(
    x: Tensor, y: Tensor, settings: Settings, weights: Sequence[Tensor], levels: int
) -> Tensor:
    """The contract's `means`, on the kernels registered for the device."""
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    grad = torch.is_grad_enabled()
    want = X * (grad and x.requires_grad) + Y * (grad and y.requires_grad)
    if want:
        out: Tensor = _Means.apply(  # type: ignore[no-untyped-call]
            x, y, settings, levels, want, *weights
        )
        return out
    return _run(x, y, settings, weights, levels, want)[0]


def _run(
    x: Tensor, y: Tensor, settings: Settings, weights: Sequence[Tensor], levels: int, want: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    window, low, c1, c2, padding = settings
    out: tuple[Tensor, list[Tensor], list[Tensor]]
    out = torch.ops.perceptual_losses.ssim_means(
        x, y, list(weights), list(window), low, c1, c2, padding, levels, want
    )
    return out


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        settings: Settings,
        levels: int,
        want: int,
        *weights: Tensor,
    ) -> Tensor:
        found, grad_x, grad_y = _run(x, y, settings, weights, levels, want)
        ctx.save_for_backward(x, y, *weights, *grad_x, *grad_y)
        ctx.options = settings, levels, want
        ctx.spent = False
        return found

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        settings, levels, want = ctx.options
        x, y, *saved = ctx.saved_tensors
        at = len(saved) - levels * want.bit_count()
        weights, gradients = saved[:at], saved[at:]
        nothing = (None,) * (3 + len(weights))
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            wanted = _reference_gradients(x, y, settings, weights, levels, want, scale)
            return *wanted, *nothing
        if ctx.spent:
            # A second backward through the same graph: the first has swept them in place.
            _, again_x, again_y = _run(x, y, settings, weights, levels, want)
            gradients = again_x + again_y
        ctx.spent = not torch.compiler.is_compiling()
        grad_x = _sweep(gradients[:levels], scale) if want & X else None
        grad_y = _sweep(gradients[-levels:], scale) if want & Y else None
        return grad_x, grad_y, *nothing


def _sweep(gradients: list[Tensor], scale: Tensor) -> Tensor:
    """The gradient of the finest image, from those of the levels' means by their own images."""
    if torch.compiler.is_compiling():
        return _swept(gradients, scale)
    torch.ops.perceptual_losses.ssim_sweep(gradients, scale)
    return gradients[0]


def _swept(gradients: list[Tensor], scale: Tensor) -> Tensor:
    """What the kernel does in place, for the compiler to fuse."""
    factors = scale.reshape(*scale.shape, *[1] * (gradients[0].dim() - 2))
    total = gradients[-1] * factors[-1]
    for level in reversed(range(len(gradients) - 1)):
        total = gradients[level] * factors[level] + spread(total, gradients[level].shape)
    return total


def spread(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """The transpose of halving images of this shape."""
    for dim, side in enumerate(shape[2:], start=2):
        share = torch.full([coarse.shape[dim]], 0.5, dtype=coarse.dtype, device=coarse.device)
        if side % 2:
            share = torch.cat([share[1:], torch.ones_like(share[:1])])
        coarse = coarse * share.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        coarse = coarse.repeat_interleave(2, dim).narrow(dim, 0, side)
    return coarse


def _reference_gradients(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    weights: Sequence[Tensor],
    levels: int,
    want: int,
    scale: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    # Views, so that an image compared with itself stays two inputs.
    x, y = x.view_as(x), y.view_as(y)
    found = reference.means(x, y, settings, weights, levels)
    wanted = [image for image, bit in ((x, X), (y, Y)) if want & bit]
    gradients = iter(torch.autograd.grad(found, wanted, scale, create_graph=True))
    return next(gradients) if want & X else None, next(gradients) if want & Y else None
