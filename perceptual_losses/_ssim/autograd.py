"""Gradients of a fast backend: an autograd function for eager calls, two for observed ones.

All take the first image as the one that has a gradient. SSIM and L1 are symmetric, so a caller
that wants the gradient of the second image only swaps the two. Second derivatives are those of the
reference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._runtime.tracing import batched, readable
from . import reference
from .backend import (
    NO_AUXILIARY,
    Auxiliary,
    Backend,
    Layout,
    Plan,
    flat,
    gradient_memory,
    layout_of,
)
from .cpu import backend as cpu
from .gpu import backend as gpu
from .pyramid import halve_transpose, halve_valid_transpose, halved_shape
from .request import (
    Definition,
    Request,
    centres,
    compute_dtype,
    num_levels,
    plane_gradient,
)

BACKENDS: dict[str, Backend] = {"numba": cpu, "triton": gpu}

_ARGUMENTS = (
    "Tensor x, Tensor y, Tensor[] weights, Tensor[] totals, Tensor[] ranges, Tensor[] valid, "
    "Tensor[] coverage, float[] taps, int[] window_sizes, float low, float length, float c1, "
    "float c2, str padding, "
)
torch.library.define(
    "perceptual_losses::ssim_level_means",
    f"({_ARGUMENTS} int levels, bool l1, int gradients, str backend) "
    "-> (Tensor means, Tensor[] gradients)",
)
torch.library.define("perceptual_losses::ssim_map", f"({_ARGUMENTS} str backend) -> Tensor")
torch.library.define(
    "perceptual_losses::ssim_map_gradients",
    f"({_ARGUMENTS} Tensor grad, int gradients, str backend) -> Tensor[]",
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
        ctx: Any, x: Tensor, y: Tensor, plan: Plan, backend: str, auxiliary: Auxiliary
    ) -> Tensor:
        value, saved = plan.forward(x, y, auxiliary)
        ctx.lengths = None
        if auxiliary is NO_AUXILIARY:
            ctx.save_for_backward(x, y, *saved)
        else:
            ctx.lengths = _lengths(auxiliary)
            ctx.save_for_backward(x, y, *flat(auxiliary), *saved)
        ctx.plan, ctx.backend = plan, backend
        ctx.consumed = False
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        plan, request = ctx.plan, ctx.plan.request
        x, y, *saved = ctx.saved_tensors
        auxiliary = NO_AUXILIARY
        if ctx.lengths is not None:
            auxiliary, saved = _split(saved, ctx.lengths)
        unused = (None,) * (5 - request.gradients)
        if not readable(grad):
            return *_reference_gradients(x, y, auxiliary, request, grad), *unused
        if ctx.consumed and saved:
            # An earlier backward through the same graph has scaled the saved gradients in place.
            # Hooks may return saved tensors with other strides, so the plan is made again.
            plan = make_plan(x, y, auxiliary.layouts, request, ctx.backend)
            saved = plan.forward(x, y, auxiliary).saved
        ctx.consumed = True
        found = []
        gradients = plan.backward(saved, grad.resolve_neg(), x, y, auxiliary)
        for gradient, image in zip(gradients, (x, y), strict=False):
            if gradient.dtype != image.dtype:
                gradient = gradient.to(image.dtype)
            # Detached by `data`, so that a caller may change its gradient and still go back again.
            found.append(gradient.data)
        return *found, *unused


# Gives the value of a plan from ``(x, y, plan, backend, auxiliary)``, differentiable with respect
# to as many images as the plan has gradients. Function.apply would first look for torch.func
# transforms, and there are none where plans run.
apply_plan: Any = super(torch.autograd.Function, _Planned).apply


def make_plan(x: Tensor, y: Tensor, layouts: Auxiliary, request: Request, backend: str) -> Plan:
    """The plan of a fast backend for these images, the first of which has the gradient if any."""
    return BACKENDS[backend].plan(layout_of(x), layout_of(y), layouts, request, x.device)


@functools.lru_cache(maxsize=256)
def _kept_plan(
    x: Layout,
    y: Layout,
    offsets: tuple[int, int],
    layouts: Auxiliary,
    request: Request,
    backend: str,
    device: torch.device,
) -> Plan:
    """A plan by all that it depends on. Multiples of 16 bytes lie at ``offsets`` before images."""
    return BACKENDS[backend].plan(x, y, layouts, request, device)


def _operator_plan(
    x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request, backend: str
) -> Plan:
    """The plan of an operator, which is kept for the next call on such images."""
    # A kernel is compiled for the alignment of the first images, as in `plans.call_key`.
    offsets = x.data_ptr() & 15, y.data_ptr() & 15
    return _kept_plan(
        layout_of(x), layout_of(y), offsets, auxiliary.layouts, request, backend, x.device
    )


def _lengths(auxiliary: Auxiliary) -> tuple[int, ...]:
    return tuple([len(tensors) for tensors in auxiliary])


def _split(
    tensors: Sequence[Tensor], lengths: tuple[int, ...]
) -> tuple[Auxiliary, Sequence[Tensor]]:
    """The auxiliary tensors that `flat` put first, and the tensors after them."""
    groups = []
    for length in lengths:
        groups.append(tensors[:length])
        tensors = tensors[length:]
    return Auxiliary(*groups), tensors


def observed_value(
    x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request, backend: str
) -> Tensor:
    """The requested value through torch's dispatcher, differentiable by the formulas of torch.

    The means of the levels are combined with the reference's formulas, which a compiler can fuse.
    """
    is_map = request.reduction == "map"
    if request.gradients:
        apply: Any = _ObservedMap.apply if is_map else _Observed.apply
        value: Tensor = apply(x, y, request, backend, _lengths(auxiliary), *flat(auxiliary))
    elif is_map:
        value = _run_map(x, y, auxiliary, request, backend)
    else:
        value = _run_level_means(x, y, auxiliary, request, backend)[0]
    return value if is_map else reference.combine(value, request)


class _Observed(torch.autograd.Function):
    """The operator with its backward pass, for torch.compile, modes and tensor subclasses."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        request: Request,
        backend: str,
        lengths: tuple[int, ...],
        *tensors: Tensor,
    ) -> Tensor:
        auxiliary, _ = _split(tensors, lengths)
        means, gradients = _run_level_means(x, y, auxiliary, request, backend)
        if torch.compiler.is_compiling():
            # torch 2.7 confuses elements of a list with others of the same name in the backward.
            gradients = [gradient.view_as(gradient) for gradient in gradients]
        ctx.save_for_backward(x, y, *tensors, *gradients)
        ctx.request = request
        # Lengths are kept, because dynamic=True turns the number of levels into a symbol.
        ctx.lengths = lengths
        return means

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        request: Request = ctx.request
        x, y, *saved = ctx.saved_tensors
        auxiliary, saved = _split(saved, ctx.lengths)
        unused = (None,) * (5 - request.gradients + sum(ctx.lengths))
        compiling = torch.compiler.is_compiling()
        if not compiling and (torch.is_grad_enabled() or batched(grad)):
            level_request = request._replace(reduction="levels")
            return *_reference_gradients(x, y, auxiliary, level_request, grad), *unused
        if compiling:
            images = [x, y][: request.gradients]
            grad = torch.ops.perceptual_losses.ssim_depends_on(grad, images)
        per_image = len(saved) // request.gradients
        gradients = [
            _add_up_levels(
                saved[k * per_image : (k + 1) * per_image], grad, pair, auxiliary, request
            )
            for k, pair in enumerate(((x, y), (y, x))[: request.gradients])
        ]
        return *gradients, *unused


class _ObservedMap(torch.autograd.Function):
    """`_Observed` for the map, whose gradients need the upstream one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        request: Request,
        backend: str,
        lengths: tuple[int, ...],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, y, *tensors)
        ctx.request, ctx.backend, ctx.lengths = request, backend, lengths
        return _run_map(x, y, _split(tensors, lengths)[0], request, backend)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        request: Request = ctx.request
        x, y, *tensors = ctx.saved_tensors
        auxiliary, _ = _split(tensors, ctx.lengths)
        unused = (None,) * (5 - request.gradients + sum(ctx.lengths))
        compiling = torch.compiler.is_compiling()
        if not compiling and (torch.is_grad_enabled() or batched(grad)):
            return *_reference_gradients(x, y, auxiliary, request, grad), *unused
        found: list[Tensor] = torch.ops.perceptual_losses.ssim_map_gradients(
            *_flattened(x, y, auxiliary, request.definition), grad, request.gradients, ctx.backend
        )
        return *[g.to(image.dtype) for g, image in zip(found, (x, y), strict=False)], *unused


def _flattened(
    x: Tensor, y: Tensor, auxiliary: Auxiliary, definition: Definition
) -> tuple[Any, ...]:
    """The first arguments of the operators."""
    windows, *others, _ = definition
    taps = [tap for window in windows for tap in window]
    return (x, y, *map(list, auxiliary), taps, [len(window) for window in windows], *others)


def _unflattened(
    arguments: tuple[Any, ...],
) -> tuple[Tensor, Tensor, Auxiliary, Definition, tuple[Any, ...]]:
    """The images, tensors and definition that `_flattened` took apart, and the arguments after."""
    x, y, *tensors, taps, window_sizes, low, length, c1, c2, padding = arguments[:14]
    windows, begin = [], 0
    for size in window_sizes:
        windows.append(tuple(taps[begin : begin + size]))
        begin += size
    definition = Definition(tuple(windows), low, length, c1, c2, padding)
    auxiliary = Auxiliary(*tensors) if any(tensors) else NO_AUXILIARY
    return x, y, auxiliary, definition, arguments[14:]


def _run_level_means(
    x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request, backend: str
) -> tuple[Tensor, list[Tensor]]:
    out: tuple[Tensor, list[Tensor]] = torch.ops.perceptual_losses.ssim_level_means(
        *_flattened(x, y, auxiliary, request.definition),
        *(num_levels(request), request.mix is not None, request.gradients, backend),
    )
    return out


def _run_map(x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request, backend: str) -> Tensor:
    out: Tensor = torch.ops.perceptual_losses.ssim_map(
        *_flattened(x, y, auxiliary, request.definition), backend
    )
    return out


def _add_up_levels(
    gradients: Sequence[Tensor],
    grad: Tensor,
    images: tuple[Tensor, Tensor],
    auxiliary: Auxiliary,
    request: Request,
) -> Tensor:
    """The gradient of the first of two images from those of each level's means."""
    first, second = images
    grad = grad.reshape(*grad.shape, *[1] * (first.dim() - 2))
    factors = grad / plane_gradient(first.shape)
    levels = len(gradients)
    total = gradients[-1] * factors[levels - 1]
    for level in reversed(range(levels - 1)):
        fine = gradients[level]
        if auxiliary.valid:
            sent = halve_valid_transpose(total, auxiliary.valid[level])
        else:
            sent = halve_transpose(total, fine.shape)
        total = fine * factors[level] + sent
    if request.mix is not None:
        step = grad[-1] / math.prod(first.shape[2:])
        if auxiliary.ranges:
            step = step / auxiliary.ranges[0].reshape(-1, *[1] * (first.dim() - 1))
        total = total + (first.to(grad.dtype) - second.to(grad.dtype)).sign() * step
    return total.to(first.dtype)


def _reference_gradients(
    x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request, grad: Tensor
) -> Sequence[Tensor]:
    """The gradients of the reference, differentiable once more if a graph is being created."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, so that an image compared with itself stays two inputs.
        x, y = x.view_as(x), y.view_as(y)
        value = reference.evaluate(x, y, auxiliary, request)
    inputs = [x, y][: request.gradients]
    return torch.autograd.grad(value, inputs, grad, create_graph=create_graph)


def _level_means(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    x, y, auxiliary, definition, (levels, l1, gradients, backend) = _unflattened(arguments)
    exponents, mix = (1.0,) * levels if levels > 1 else (), (1.0, 1.0) if l1 else None
    request = Request(definition, exponents, None, mix, "levels", gradients)
    plan = _operator_plan(x, y, auxiliary, request, backend)
    value, saved = plan.forward(x, y, auxiliary)
    return value, list(saved)


def _fake_level_means(*arguments: Any) -> tuple[Tensor, list[Tensor]]:
    x, y, _, _, (levels, l1, gradients, backend) = _unflattened(arguments)
    saved = []
    for image in (x, y)[:gradients]:
        saved.append(gradient_memory(image))
        for _ in range(levels - 1):
            shape = halved_shape(saved[-1].shape)
            saved.append(BACKENDS[backend].coarse_gradient(image, shape))
    return x.new_empty([levels + l1, *x.shape[:2]], dtype=compute_dtype(x, y)), saved


def _map(*arguments: Any) -> Tensor:
    x, y, auxiliary, definition, (backend,) = _unflattened(arguments)
    plan = make_plan(x, y, auxiliary.layouts, Request(definition, reduction="map"), backend)
    return plan.forward(x, y, auxiliary).value


def _fake_map(*arguments: Any) -> Tensor:
    x, y, _, definition, _ = _unflattened(arguments)
    return x.new_empty(centres(x, definition).shape, dtype=compute_dtype(x, y))


def _map_gradients(*arguments: Any) -> list[Tensor]:
    x, y, auxiliary, definition, (grad, gradients, backend) = _unflattened(arguments)
    request = Request(definition, reduction="map", gradients=gradients)
    plan = _operator_plan(x, y, auxiliary, request, backend)
    return list(plan.backward((), grad.resolve_neg(), x, y, auxiliary))


def _fake_map_gradients(*arguments: Any) -> list[Tensor]:
    x, y, _, _, (_, gradients, _) = _unflattened(arguments)
    return [gradient_memory(image) for image in (x, y)[:gradients]]


# By name and not by device: in Triton's interpreter CPU tensors have two backends.
for _name, _run, _fake in (
    ("ssim_level_means", _level_means, _fake_level_means),
    ("ssim_map", _map, _fake_map),
    ("ssim_map_gradients", _map_gradients, _fake_map_gradients),
    ("ssim_depends_on", lambda grad, _: grad.clone(), lambda grad, _: torch.empty_like(grad)),
):
    torch.library.impl(f"perceptual_losses::{_name}", "CompositeExplicitAutograd", _run)
    torch.library.register_fake(f"perceptual_losses::{_name}", _fake)
