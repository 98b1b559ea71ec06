"""Gradients of a fast backend: one autograd function for eager calls, one for observed ones.

Both take the first image as the one that has a gradient. SSIM and L1 are symmetric, so a caller
that wants the gradient of the second image only swaps the two. Second derivatives are those of the
reference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._runtime.tracing import batched, readable
from . import reference
from .backend import Backend, Plan, gradient_memory, layout_of
from .cpu import backend as cpu
from .definition import Definition, Request, compute_dtype, plane_gradient
from .gpu import backend as gpu
from .pyramid import halved_shape, upsample_adjoint

BACKENDS: dict[str, Backend] = {"numba": cpu, "triton": gpu}

torch.library.define(
    "perceptual_losses::ssim_level_means",
    "(Tensor x, Tensor y, Tensor[] weights, float[] window, float low, float c1, float c2, "
    "str padding, int levels, bool l1, int gradients, str backend) "
    "-> (Tensor means, Tensor[] gradients)",
)
# Makes a compiled backward depend on the images. AOTAutograd then raises on double backward;
# without this operator it would silently return zeros.
torch.library.define(
    "perceptual_losses::ssim_depends_on", "(Tensor grad, Tensor[] images) -> Tensor"
)


class _Planned(torch.autograd.Function):
    """A plan with its backward pass, for eager calls."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, plan: Plan, backend: str, *weights: Tensor
    ) -> Tensor:
        value, saved = plan.forward(x, y, weights)
        ctx.save_for_backward(x, y, *weights, *saved)
        ctx.plan, ctx.backend, ctx.num_weights = plan, backend, len(weights)
        ctx.consumed = False
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        plan, request = ctx.plan, ctx.plan.request
        x, y, *saved = ctx.saved_tensors
        weights, saved = saved[: ctx.num_weights], saved[ctx.num_weights :]
        unused = (None,) * (4 - request.gradients + len(weights))
        if not readable(grad):
            return *_reference_gradients(x, y, weights, request, grad), *unused
        if ctx.consumed:
            # An earlier backward through the same graph has scaled the saved gradients in place.
            # What hooks on saved tensors give back may lie otherwise than the plan knows.
            plan = make_plan(x, y, weights, request, ctx.backend)
            saved = plan.forward(x, y, weights).saved
        ctx.consumed = True
        found = []
        gradients = plan.backward(saved, grad.resolve_neg(), x, y)
        for gradient, image in zip(gradients, (x, y), strict=False):
            if gradient.dtype != image.dtype:
                gradient = gradient.to(image.dtype)
            # Detached by `data`, so that a caller may change its gradient and still go back again.
            found.append(gradient.data)
        return *found, *unused


# Gives the value of a plan from ``(x, y, plan, backend, *weights)``, differentiable with respect to
# as many images as the plan has gradients. Function.apply would first look for torch.func
# transforms, and there are none where plans run.
apply_plan: Any = super(torch.autograd.Function, _Planned).apply


def make_plan(
    x: Tensor, y: Tensor, weights: Sequence[Tensor], request: Request, backend: str
) -> Plan:
    """The plan of a fast backend for these images, the first of which has the gradient if any."""
    layouts = layout_of(x), layout_of(y), tuple(map(layout_of, weights))
    return BACKENDS[backend].plan(*layouts, request, x.device)


def observed_level_means(
    x: Tensor, y: Tensor, weights: Sequence[Tensor], request: Request, backend: str
) -> Tensor:
    """The means of each level through torch's dispatcher, differentiable by the formulas of torch.

    The caller combines them with the reference's formulas, which a compiler can fuse.
    """
    if request.gradients:
        apply: Any = _Observed.apply
        means: Tensor = apply(x, y, request, backend, *weights)
        return means
    return _run_level_means(x, y, weights, request, backend)[0]


class _Observed(torch.autograd.Function):
    """The operator with its backward pass, for torch.compile, modes and tensor subclasses."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, request: Request, backend: str, *weights: Tensor
    ) -> Tensor:
        means, gradients = _run_level_means(x, y, weights, request, backend)
        if torch.compiler.is_compiling():
            # torch 2.7 takes elements of a list for others that are named alike in the backward.
            gradients = [gradient.view_as(gradient) for gradient in gradients]
        ctx.save_for_backward(x, y, *weights, *gradients)
        ctx.request = request
        # A length, not derived from the levels: torch.compile(dynamic=True) makes these symbols.
        ctx.num_weights = len(weights)
        return means

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        request: Request = ctx.request
        x, y, *saved = ctx.saved_tensors
        weights, saved = saved[: ctx.num_weights], saved[ctx.num_weights :]
        unused = (None,) * (4 - request.gradients + len(weights))
        compiling = torch.compiler.is_compiling()
        if not compiling and (torch.is_grad_enabled() or batched(grad)):
            level_request = request._replace(reduction="levels")
            return *_reference_gradients(x, y, weights, level_request, grad), *unused
        if compiling:
            images = [x, y][: request.gradients]
            grad = torch.ops.perceptual_losses.ssim_depends_on(grad, images)
        per_image = len(saved) // request.gradients
        gradients = [
            _add_up_levels(saved[k * per_image : (k + 1) * per_image], grad, pair, request)
            for k, pair in enumerate(((x, y), (y, x))[: request.gradients])
        ]
        return *gradients, *unused


def _run_level_means(
    x: Tensor, y: Tensor, weights: Sequence[Tensor], request: Request, backend: str
) -> tuple[Tensor, list[Tensor]]:
    window, low, c1, c2, padding = request.definition
    out: tuple[Tensor, list[Tensor]] = torch.ops.perceptual_losses.ssim_level_means(
        *(x, y, list(weights), list(window), low, c1, c2, padding),
        *(max(1, len(request.exponents)), request.mix is not None, request.gradients, backend),
    )
    return out


def _add_up_levels(
    gradients: Sequence[Tensor], grad: Tensor, images: tuple[Tensor, Tensor], request: Request
) -> Tensor:
    """The gradient of the first of two images from those of each level's means."""
    first, second = images
    grad = grad.reshape(*grad.shape, *[1] * (first.dim() - 2))
    factors = grad / plane_gradient(first.shape)
    levels = len(gradients)
    total = gradients[-1] * factors[levels - 1]
    for level in reversed(range(levels - 1)):
        fine = gradients[level]
        total = fine * factors[level] + upsample_adjoint(total, fine.shape)
    if request.mix is not None:
        pixels = math.prod(first.shape[2:])
        sign = (first.to(grad.dtype) - second.to(grad.dtype)).sign()
        total = total + sign * (grad[-1] / pixels)
    return total.to(first.dtype)


def _reference_gradients(
    x: Tensor, y: Tensor, weights: Sequence[Tensor], request: Request, grad: Tensor
) -> Sequence[Tensor]:
    """The gradients of the reference, differentiable once more if a graph is being created."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that an image compared with itself stays two inputs.
        x, y = x.view_as(x), y.view_as(y)
        value = reference.evaluate(x, y, weights, request)
    inputs = [x, y][: request.gradients]
    return torch.autograd.grad(value, inputs, grad, create_graph=create_graph)


def _level_means(
    x: Tensor,
    y: Tensor,
    weights: list[Tensor],
    window: list[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    levels: int,
    l1: bool,
    gradients: int,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    definition = Definition(tuple(window), low, c1, c2, padding)
    exponents, mix = (1.0,) * levels if levels > 1 else (), (1.0, 1.0) if l1 else None
    request = Request(definition, exponents, None, mix, "levels", gradients)
    value, saved = make_plan(x, y, weights, request, backend).forward(x, y, weights)
    return value, list(saved)


def _fake_level_means(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    window: Sequence[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    levels: int,
    l1: bool,
    gradients: int,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    saved = []
    for image in (x, y)[:gradients]:
        saved.append(gradient_memory(image))
        for _ in range(levels - 1):
            shape = halved_shape(saved[-1].shape)
            saved.append(BACKENDS[backend].coarse_gradient(image, shape))
    return x.new_empty([levels + l1, *x.shape[:2]], dtype=compute_dtype(x, y)), saved


# By name and not by device: in Triton's interpreter CPU tensors have two backends.
torch.library.impl("perceptual_losses::ssim_level_means", "CompositeExplicitAutograd", _level_means)
torch.library.register_fake("perceptual_losses::ssim_level_means", _fake_level_means)
torch.library.impl(
    "perceptual_losses::ssim_depends_on",
    "CompositeExplicitAutograd",
    lambda grad, images: grad.clone(),
)
torch.library.register_fake(
    "perceptual_losses::ssim_depends_on", lambda grad, images: torch.empty_like(grad)
)
