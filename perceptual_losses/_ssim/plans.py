"""The choice of a backend, and the plans that are kept, by the layouts of the images.

A plain call that has been seen before is one lookup of a flat key. It skips validation and
planning. With tensors beside the images it skips only planning.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter

from .._runtime.tracing import active_transform, observed
from .._runtime.warnings import warn
from . import autograd, reference
from .autograd import BACKENDS as FAST
from .backend import NO_AUXILIARY, Auxiliary, Plan, flat
from .cpu import backend as cpu
from .definition import Definition, Request, compute_dtype, replaced

BACKENDS = ("auto", "reference", *FAST)

_FOR_DEVICE = {"cpu": "numba", "cuda": "triton", "xpu": "triton"}
_LIMIT = 256

# Looked up once: a remembered call asks them all.
_is_compiling = torch.compiler.is_compiling
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active
_grad_enabled = torch.is_grad_enabled


def call_key(x: Any, y: Any, gradients: int | None = None) -> tuple[Any, ...] | None:
    """The key of a call: everything of two images that a plan depends on.

    Args:
        x: anything.
        y: anything.
        gradients: which images have a gradient, 1 for the first and 2 for the second; by default
            those that require one while autograd records.

    Returns:
        ``None`` if the call cannot be remembered: both images must be plain strided tensors, and
        neither torch.compile, a dispatch mode, an export, torch.func nor forward-mode
        differentiation may be watching.
    """
    x_type, y_type = type(x), type(y)
    if (
        (x_type is not Tensor and x_type is not Parameter)
        or (y_type is not Tensor and y_type is not Parameter)
        or _is_compiling()
        or _num_dispatch_modes()
        or _tracing_state() is not None
        or _transforms_active()
        or forward_ad._current_level >= 0
        or x.layout is not torch.strided
        or y.layout is not torch.strided
        or x.is_nested
        or y.is_nested
        or x.is_neg()
        or y.is_neg()
        or sys.is_finalizing()
    ):
        return None
    if gradients is None:
        gradients = x.requires_grad + 2 * y.requires_grad if _grad_enabled() else 0
    return (
        *(x.dtype, x.shape, x.stride(), x.data_ptr() & 15, x.device),
        *(y.dtype, y.shape, y.stride(), y.data_ptr() & 15, y.device, gradients),
    )


class Call(NamedTuple):
    """A call that has been planned.

    Attributes:
        plan: the plan for images of these layouts.
        swapped: whether the second image takes the first place, because only it has a gradient.
        backend: the name of the plan's backend.
        notice: a warning that each such call gives, or ``None``.
    """

    plan: Plan
    swapped: bool
    backend: str
    notice: str | None

    def __call__(self, x: Tensor, y: Tensor, auxiliary: Auxiliary = NO_AUXILIARY) -> Tensor:
        if self.swapped:
            x, y = y, x
        if not self.plan.request.gradients:
            return self.plan.forward(x, y, auxiliary).value
        value: Tensor = autograd.apply_plan(x, y, self.plan, self.backend, auxiliary)
        return value


Plans = dict[tuple[Any, ...], Call]


def evaluate(
    x: Tensor,
    y: Tensor,
    auxiliary: Auxiliary,
    request: Request,
    backend: str,
    plans: Plans,
    notice: str | None = None,
) -> Tensor:
    """The requested value for images that have been checked; keeps the plan for the next call."""
    name = choose_backend(x, y, request, backend)
    if name == "reference":
        return reference.evaluate(x, y, auxiliary, request)
    x, y = computable(x, y, name)
    gradients, swapped = _num_gradients(x, y)
    request = replaced(request, gradients=gradients)
    if observed(x, y, *flat(auxiliary)):
        if swapped:
            x, y = y, x
        return autograd.observed_value(x, y, auxiliary, request, name)
    key = call_key(x, y)
    assert key is not None  # Nothing watches: `choose_backend` and `observed` have asked.
    layouts = auxiliary.layouts
    if any(layouts):
        key = (*key, *layouts)
    call = plans.get(key)
    if call is None:
        first, second = (y, x) if swapped else (x, y)
        plan = autograd.make_plan(first, second, layouts, request, name)
        call = Call(plan, swapped, name, notice)
        remember(plans, key, call)
    return call(x, y, auxiliary)


def remember(plans: Plans, key: tuple[Any, ...], call: Call) -> None:
    """Keeps a call. Images of ever new sizes would fill the memory: then all is planned anew."""
    if len(plans) >= _LIMIT:
        plans.clear()
    plans[key] = call


def computable(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both images as the backend can read them.

    Triton's kernels convert half precision, and those of Numba bytes.
    """
    if not torch.compiler.is_compiling():
        # Kernels read memory, where a lazily negated image has the other sign.
        x, y = x.resolve_neg(), y.resolve_neg()
    if name == "triton" and x.is_floating_point() and y.is_floating_point():
        return x, y
    dtype = compute_dtype(x, y)
    x, y = (a if name == "numba" and a.dtype == torch.uint8 else a.to(dtype) for a in (x, y))
    return x, y


def inverse_coverage(
    valid: Tensor, definition: Definition, dtype: torch.dtype, backend: str
) -> Tensor:
    """The reciprocal of the windows' weight over valid pixels, for `Auxiliary`.

    To filter them takes a noticeable part of a call on a CPU, which has a kernel for images.
    """
    fast = backend in ("auto", "numba") and valid.device.type == "cpu" and valid.dim() == 4
    if (
        fast
        and not observed(valid)
        and not active_transform()
        and cpu.unavailable(valid.device) is None
    ):
        from .cpu.coverage import inverse_coverage as fused

        return fused(valid, definition, dtype)
    return reference.inverse_coverage(valid, definition, dtype)


def _num_gradients(x: Tensor, y: Tensor) -> tuple[int, bool]:
    """The number of gradients, and whether the images have to be swapped for a single one."""
    if not torch.is_grad_enabled():
        return 0, False
    return x.requires_grad + y.requires_grad, y.requires_grad and not x.requires_grad


def choose_backend(x: Tensor, y: Tensor, request: Request, backend: str) -> str:
    """The name of the backend that computes the value. Only this function decides."""
    if not torch.compiler.is_compiling() and sys.is_finalizing():
        raise RuntimeError(
            "the interpreter is shutting down, and torch has dropped its operations: compare "
            "images before, in a function registered with atexit at the latest"
        )
    name = backend
    if backend == "auto":
        name = _FOR_DEVICE.get(x.device.type, "reference")
    if name == "reference":
        return name
    unsupported = FAST[name].unsupported(x, y, request)
    transform = active_transform()
    if transform is not None:
        unsupported = f"{transform} is active, and its gradient is made for autograd"
    reason = unsupported or FAST[name].unavailable(x.device)
    if reason is None:
        return name
    if backend != "auto":
        raise ValueError(f"backend={backend!r} cannot run: {reason}; pass backend='auto'")
    if unsupported is None and not torch.compiler.is_compiling():
        _warn_of_fallback(reason, "the CPU" if name == "numba" else "the GPU", name)
    return "reference"


@functools.cache
def _warn_of_fallback(reason: str, device: str, package: str) -> None:
    warn(
        f"{reason}: {device} runs the reference path, which is many times slower. Install "
        f"{package}, or pass backend='reference' to choose it.",
        RuntimeWarning,
    )
