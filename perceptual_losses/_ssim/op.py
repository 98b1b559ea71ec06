"""One level as an operation with its gradient, the same for every fast path.

The kernels give the mean and its derivatives in one pass, so that the backward is a multiplication.
Second derivatives are those of the reference path.
"""

from typing import Any

import torch
from torch import Tensor

from . import reference
from .contract import Settings, compute_dtype

LEVEL = "perceptual_losses::ssim_level"
SWEEP = "perceptual_losses::ssim_sweep"

# What `want` asks for: the gradient with respect to either image, or their sum for both.
X, Y = 1, 2

torch.library.define(
    LEVEL,
    "(Tensor x, Tensor y, Tensor? weight, float[] window, float low, float c1, float c2, "
    "str padding, bool contrast, bool pool, int want) "
    "-> (Tensor mean, Tensor grad_x, Tensor grad_y, Tensor half_x, Tensor half_y)",
)
# In place, because the gradient is the only thing of an image's size that a step keeps.
torch.library.define(SWEEP, "(Tensor(a!) gradient, Tensor scale, Tensor coarse) -> ()")


def outputs(x: Tensor, y: Tensor, pool: bool, want: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uninitialised gradients and halves; empty where they are not asked for."""
    nothing = [0] * x.dim()
    half = [*x.shape[:2], *[(side + 1) // 2 for side in x.shape[2:]]] if pool else nothing
    return (
        torch.empty_like(x) if want & X else x.new_empty(nothing),
        torch.empty_like(y) if want & Y else y.new_empty(nothing),
        x.new_empty(half),
        y.new_empty(half),
    )


def _fake_level(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    window: list[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    contrast: bool,
    pool: bool,
    want: int,
) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape[:2]), *outputs(x, y, pool, want)


torch.library.register_fake(LEVEL, _fake_level)
torch.library.register_fake(SWEEP, lambda gradient, scale, coarse: None)


def level(
    x: Tensor, y: Tensor, settings: Settings, weight: Tensor | None, contrast: bool, pool: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract's `level`, on the kernels registered for the device."""
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    grad = torch.is_grad_enabled()
    want = X * (grad and x.requires_grad) + Y * (grad and y.requires_grad)
    if want:
        out: tuple[Tensor, Tensor, Tensor] = _Level.apply(  # type: ignore[no-untyped-call]
            x, y, weight, settings, contrast, pool, want
        )
        return out
    mean, _, _, half_x, half_y = _run(x, y, weight, settings, contrast, pool, want)
    return mean, half_x, half_y


def _run(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    settings: Settings,
    contrast: bool,
    pool: bool,
    want: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    window, low, c1, c2, padding = settings
    out: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    out = torch.ops.perceptual_losses.ssim_level(
        x, y, weight, list(window), low, c1, c2, padding, contrast, pool, want
    )
    return out


class _Level(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        settings: Settings,
        contrast: bool,
        pool: bool,
        want: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, grad_x, grad_y, half_x, half_y = _run(x, y, weight, settings, contrast, pool, want)
        ctx.save_for_backward(x, y, weight, grad_x, grad_y)
        ctx.options = settings, contrast, pool, want
        ctx.spent = False
        return mean, half_x, half_y

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, coarse_x: Tensor, coarse_y: Tensor) -> Any:
        x, y, weight, grad_x, grad_y = ctx.saved_tensors
        settings, contrast, pool, want = ctx.options
        nothing = (None,) * 5
        if torch.compiler.is_compiling():
            return (
                _swept(grad_x, grad_mean, coarse_x, pool) if want & X else None,
                _swept(grad_y, grad_mean, coarse_y, pool) if want & Y else None,
                *nothing,
            )
        if torch.is_grad_enabled():
            grads = (grad_mean, coarse_x, coarse_y)
            return *_reference_backward(x, y, weight, ctx.options, grads), *nothing
        if ctx.spent:
            # A second backward through the same graph: the first has scaled them in place.
            _, grad_x, grad_y, _, _ = _run(x, y, weight, settings, contrast, False, want)
        ctx.spent = True
        sweep = torch.ops.perceptual_losses.ssim_sweep
        if want & X:
            sweep(grad_x, grad_mean, coarse_x)
        if want & Y:
            sweep(grad_y, grad_mean, coarse_y)
        return grad_x if want & X else None, grad_y if want & Y else None, *nothing


def _swept(gradient: Tensor, scale: Tensor, coarse: Tensor, pool: bool) -> Tensor:
    """What the kernel does in place, for the compiler to fuse."""
    gradient = gradient * scale[..., None, None]
    if not pool:
        return gradient
    height, width = gradient.shape[2:]
    for dim, side in ((2, height), (3, width)):
        share = torch.full([coarse.shape[dim]], 0.5, dtype=coarse.dtype, device=coarse.device)
        if side % 2:
            share = torch.cat([share[1:], torch.ones_like(share[:1])])
        coarse = coarse * share.reshape([-1 if d == dim else 1 for d in range(4)])
        coarse = coarse.repeat_interleave(2, dim).narrow(dim, 0, side)
    return gradient + coarse


def _reference_backward(
    x: Tensor, y: Tensor, weight: Tensor | None, options: Any, grads: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    settings, contrast, pool, want = options
    # Views, so that an image compared with itself stays two inputs.
    x, y = x.view_as(x), y.view_as(y)
    outs = reference.level(x, y, settings, weight, contrast, pool)
    used = [(out, grad) for out, grad in zip(outs, grads, strict=True) if out.requires_grad]
    wanted = [image for image, bit in ((x, X), (y, Y)) if want & bit]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in used], wanted, [grad for _, grad in used], create_graph=True
        )
    )
    return next(found) if want & X else None, next(found) if want & Y else None
