"""The means as an operation with its gradient, the same for every fast path.

The kernels give the means and their derivatives in one pass, so that the backward is a
multiplication, or nothing where the scale is the usual one. Second derivatives are those of the
reference path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .._runtime.tracing import batched, transform
from . import reference
from .cpu import backend as cpu
from .definition import Result, Settings, X, Y, compute_dtype, usual_scale
from .gpu import backend as gpu
from .gpu import launch as gpu_launch
from .gpu.launch import layout_of
from .pyramid import halved, spread

MEANS = "perceptual_losses::ssim_means"
SWEEP = "perceptual_losses::ssim_sweep"
PRODUCT = "perceptual_losses::ms_ssim_product"
SCALE = "perceptual_losses::ssim_scale"

torch.library.define(
    MEANS,
    "(Tensor x, Tensor y, Tensor[] weights, float[] window, float low, float c1, float c2, "
    "str padding, int levels, bool distance, int want, str reduction, float[] mix, str path) "
    "-> (Tensor means, Tensor[] gradients)",
)
# In place, because the gradient is the only thing of an image's size that a step keeps.
torch.library.define(
    SWEEP,
    "(Tensor(a!)[] gradients, Tensor scale, Tensor[] derivatives, Tensor[] images, float usual, "
    "str path) -> ()",
)
torch.library.define(
    PRODUCT,
    "(Tensor means, float[] exponents, str? normalize, str reduction, float[] mix, str path) "
    "-> (Tensor product, Tensor derivatives)",
)
# Of a compiled backward torch refuses second derivatives if it keeps what has a gradient. With this
# operation it keeps the images; without, they would be zero.
torch.library.define(SCALE, "(Tensor scale, Tensor[] images) -> Tensor")

PATHS = {"numba": cpu, "triton": gpu}


def _means(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    found, grad_x, grad_y = PATHS[arguments[-1]].means(*arguments[:-1])
    return found, [*grad_x, *grad_y]


def _sweep_in_place(
    gradients: list[Tensor],
    scale: Tensor,
    derivatives: list[Tensor],
    images: list[Tensor],
    usual: float,
    path: str,
) -> None:
    PATHS[path].sweep(gradients, scale, derivatives, images, usual)


def _product(*arguments: Any) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = PATHS[arguments[-1]].product(*arguments[:-1])
    return out


# By name and not by device: in Triton's interpreter CPU tensors have two paths.
torch.library.impl(MEANS, "CompositeExplicitAutograd", _means)
torch.library.impl(SWEEP, "CompositeExplicitAutograd", _sweep_in_place)
torch.library.impl(PRODUCT, "CompositeExplicitAutograd", _product)
torch.library.impl(SCALE, "CompositeExplicitAutograd", lambda scale, images: scale.clone())


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
    distance: bool,
    want: int,
    reduction: str,
    mix: Sequence[float],
    path: str,
) -> tuple[Tensor, list[Tensor]]:
    dtype = compute_dtype(x, y)
    gradients = []
    for image, bit in ((x, X), (y, Y)):
        if want & bit:
            gradients.append(gpu_launch.unscaled(image))
            for _ in range(levels - 1):
                shape = halved(gradients[-1].shape)
                gradients.append(
                    gpu_launch.in_rows(image, shape)
                    if path == "triton"
                    else image.new_empty(shape, dtype=dtype)
                )
    shape = [*x.shape[:2]] if mix else [levels + distance, *x.shape[:2]]
    shape = shape if reduction == "none" else []
    return x.new_empty(shape, dtype=dtype), gradients


def _fake_product(
    means: Tensor,
    exponents: Sequence[float],
    normalize: str | None,
    reduction: str,
    mix: Sequence[float],
    path: str,
) -> tuple[Tensor, Tensor]:
    shape = means.shape[1:] if reduction == "none" else []
    return means.new_empty(shape), means.new_empty(means.shape)


torch.library.register_fake(MEANS, _fake_means)
torch.library.register_fake(SWEEP, lambda *_: None)
torch.library.register_fake(PRODUCT, _fake_product)
torch.library.register_fake(SCALE, lambda scale, images: torch.empty_like(scale))


class Call(NamedTuple):
    """What is computed of two images.

    Attributes:
        settings: of each level.
        levels: how many.
        distance: whether the mean of ``|x - y|`` follows.
        want: which gradients.
        path: ``"numba"`` or ``"triton"``.
        result: of the means, or ``None`` for themselves.
    """

    settings: Settings
    levels: int
    distance: bool
    want: int
    path: str
    result: Result | None


def means(
    x: Tensor,
    y: Tensor,
    settings: Settings,
    weights: Sequence[Tensor],
    levels: int,
    distance: bool,
    path: str,
    result: Result | None,
) -> Tensor:
    """The reference's `means` on a fast path, or the ``result`` of them in one operation."""
    if path == "numba" or not _of_floats(x, y):
        dtype = compute_dtype(x, y)
        x, y = x.to(dtype), y.to(dtype)
    call = Call(settings, levels, distance, _wanted(x, y), path, result)
    if call.want:
        out: Tensor = _Means.apply(x, y, call, None, *weights)  # type: ignore[no-untyped-call]
        return out
    return _run(x, y, call, weights)[0]


def ordinary(x: Any, y: Any) -> bool:
    """Whether two images are tensors of which the kind decides what is done, and nothing has to see
    an operation.
    """
    return (
        not _dispatched(x, y)
        and x.layout == y.layout == torch.strided
        and not (x.is_nested or y.is_nested)
        and _of_floats(x, y)
        and transform() is None
    )


def kind(x: Tensor, y: Tensor) -> tuple[Any, ...]:
    """Of two `ordinary` images, whatever decides what is done."""
    return layout_of(x), x.device, layout_of(y), y.device, _wanted(x, y)


def again(
    x: Tensor, y: Tensor, settings: Settings, levels: int, result: Result
) -> Callable[[Tensor, Tensor], Tensor]:
    """What gives the ``result`` of plain means on a GPU to images of the same `kind`."""
    want = _wanted(x, y)
    launches = gpu.Reduction(x, y, settings, levels, want, result)
    if not want:
        return lambda x, y: launches(x, y)[0]
    call = Call(settings, levels, bool(result.mix), want, "triton", result)
    return lambda x, y: _Means.apply(x, y, call, launches)  # type: ignore[no-untyped-call]


def _of_floats(x: Tensor, y: Tensor) -> bool:
    return x.is_floating_point() and y.is_floating_point()


def _wanted(x: Tensor, y: Tensor) -> int:
    if not torch.is_grad_enabled():
        return 0
    return X * x.requires_grad + Y * y.requires_grad


def _run(
    x: Tensor, y: Tensor, call: Call, weights: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The result, the gradients of the means, and the derivatives of a product by them."""
    window, low, c1, c2, padding = call.settings
    reduction, exponents, _, mix = call.result or Result()
    run = torch.ops.perceptual_losses.ssim_means if _dispatched(x, y, *weights) else _means
    found, gradients = run(
        *(x, y, list(weights), list(window), low, c1, c2, padding),
        *(call.levels, call.distance, call.want),
        *(("none", []) if exponents else (reduction, list(mix))),
        call.path,
    )
    if call.result is None or not exponents:
        squeezed = call.result is not None and found.dim() == 3
        return found.squeeze(0) if squeezed else found, gradients, []
    found, derivatives = _run_product(found, call.result, call.path)
    return found, gradients, [derivatives]


def _dispatched(*tensors: Tensor) -> bool:
    """Whether anything has to see an operation, or to negate first what a tensor's memory has with
    the other sign. If not, torch's way to it is spared, which takes as long as the launch.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or not all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
        or any(tensor.is_neg() for tensor in tensors)
    )


class _Means(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        call: Call,
        launches: gpu.Reduction | None,
        *weights: Tensor,
    ) -> Tensor:
        found, gradients, derivatives = (
            launches(x, y) if launches is not None else _run(x, y, call, weights)
        )
        if torch.compiler.is_compiling():
            # torch 2.7 takes elements of a list for others that are named alike in the backward.
            gradients = [gradient.view_as(gradient) for gradient in gradients]
        ctx.save_for_backward(x, y, *weights, *derivatives, *gradients)
        ctx.call = call
        # As lengths and not from the levels, which are a symbol under torch.compile(dynamic=True).
        ctx.counts = len(weights), len(gradients) // 2 if call.want == X + Y else len(gradients)
        ctx.spent = False
        return found

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        call: Call = ctx.call
        want, path, result = call.want, call.path, call.result
        x, y, *saved = ctx.saved_tensors
        masks, of_one = ctx.counts
        weights, saved = saved[:masks], saved[masks:]
        nothing = (None,) * (2 + len(weights))
        compiling = torch.compiler.is_compiling()
        if not compiling and (torch.is_grad_enabled() or batched(scale)):
            return *_reference_gradients(x, y, call, weights, scale), *nothing
        if compiling:
            images = [image for image, bit in ((x, X), (y, Y)) if want & bit]
            scale = torch.ops.perceptual_losses.ssim_scale(scale, images)
        usual = result.usual_scale(x.shape) if result else usual_scale(x.shape)
        products = bool(result and result.exponents)
        derivatives, gradients = saved[:products], saved[products:]
        if ctx.spent:
            # A second backward through the same graph: the first has swept them in place.
            same = call._replace(result=None, distance=False) if products else call
            _, gradients, _ = _run(x, y, same, weights)
        ctx.spent = not compiling
        # A mix of one level's means is in its gradients already.
        pair = [x, y] if call.distance and (products or not result) else []
        of_x, of_y = None, None
        if want & X:
            of_x = _sweep(gradients[:of_one], scale, derivatives, pair, usual, path).to(x.dtype)
        if want & Y:
            pair = pair[::-1]
            of_y = _sweep(gradients[-of_one:], scale, derivatives, pair, usual, path).to(y.dtype)
        return of_x, of_y, *nothing


def _sweep(
    gradients: list[Tensor],
    scale: Tensor,
    derivatives: list[Tensor],
    images: list[Tensor],
    usual: float,
    path: str,
) -> Tensor:
    """The gradient of the finest image, from those of the levels' means by their own images.

    Args:
        gradients: of each level.
        scale: of the means, or of all planes' product of means.
        derivatives: of the products by the means, or none.
        images: of which the gradient is that of the first, where the mean of their distance has a
            scale too; or none.
        usual: the scale that the gradients have already.
        path: ``"numba"`` or ``"triton"``.
    """
    if torch.compiler.is_compiling():
        return _swept(gradients, scale, derivatives, images, usual)
    dispatched = _dispatched(scale, *images)
    sweep = torch.ops.perceptual_losses.ssim_sweep if dispatched else _sweep_in_place
    sweep(gradients, scale, derivatives, images, usual, path)
    # The caller's own to change: a second backward reads what was saved, but computes it again.
    return gradients[0].data


def _swept(
    gradients: list[Tensor],
    scale: Tensor,
    derivatives: list[Tensor],
    images: list[Tensor],
    usual: float,
) -> Tensor:
    """What the kernel does in place, for the compiler to fuse."""
    for derivative in derivatives:
        scale = scale * derivative
    scale = scale.reshape(*scale.shape, *[1] * (gradients[0].dim() - 2))
    factors = scale / usual
    levels = len(gradients)
    total = gradients[-1] * factors[levels - 1]
    for level in reversed(range(levels - 1)):
        total = gradients[level] * factors[level] + spread(total, gradients[level].shape)
    if images:
        x, y = images
        pixels = math.prod(x.shape[2:])
        total = total + (x.to(scale.dtype) - y.to(scale.dtype)).sign() * (scale[-1] / pixels)
    return total.to(gradients[0].dtype)


def _run_product(means: Tensor, result: Result, path: str) -> tuple[Tensor, Tensor]:
    reduction, exponents, normalize, mix = result
    dispatched = _dispatched(means)
    run = torch.ops.perceptual_losses.ms_ssim_product if dispatched else _product
    out: tuple[Tensor, Tensor] = run(means, list(exponents), normalize, reduction, list(mix), path)
    return out


def _reference_gradients(
    x: Tensor, y: Tensor, call: Call, weights: Sequence[Tensor], scale: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that an image compared with itself stays two inputs.
        x, y = x.view_as(x), y.view_as(y)
        found = reference.means(x, y, call.settings, weights, call.levels, call.distance)
        if call.result is not None:
            found = reference.reduced(found, call.result)
    want = call.want
    wanted = [image for image, bit in ((x, X), (y, Y)) if want & bit]
    gradients = iter(torch.autograd.grad(found, wanted, scale, create_graph=again))
    return next(gradients) if want & X else None, next(gradients) if want & Y else None
