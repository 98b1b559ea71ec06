"""The choice of a backend for a call, and the call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._runtime.tracing import active_transform, observed
from .._runtime.warnings import warn
from . import autograd, reference
from .autograd import BACKENDS as FAST
from .backend import NO_AUXILIARY, Auxiliary, flat
from .cpu import backend as cpu
from .plans import Call, Plans, call_key, for_backend, key_with_extras, remember
from .request import Definition, Request, compute_dtype, replaced

BACKENDS = ("auto", "reference", *FAST)

_FOR_DEVICE = {"cpu": "numba", "cuda": "triton", "xpu": "triton"}


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


def evaluate(
    x: Tensor,
    y: Tensor,
    auxiliary: Auxiliary,
    request: Request,
    backend: str,
    plans: Plans,
    extras: Sequence[Any],
    notice: str | None = None,
) -> Tensor:
    """The requested value for images that have been checked; keeps the plan for the next call.

    ``extras`` are the mask, the valid pixels and the ranges as the user passed them, or ``None``.
    ``auxiliary`` was made from them, and their layouts are in the key of the plan.
    """
    name = choose_backend(x, y, request, backend)
    if name == "reference":
        return reference.evaluate(x, y, auxiliary, request)
    x, y = computable(x, y, name)
    gradients, swapped = _num_gradients(x, y)
    request = replaced(request, gradients=gradients)
    if observed(x, y, *flat(auxiliary)):
        if swapped:
            x, y = y, x
        return autograd.observed_value(x, y, for_backend(auxiliary, name), request, name)
    key = call_key(x, y)
    assert key is not None  # Nothing watches: `choose_backend` and `observed` have asked.
    if any(auxiliary):
        key = key_with_extras(key, *extras)
    else:
        # Plans compare with this object, which is faster than a look at each field.
        auxiliary = NO_AUXILIARY
    call = None if key is None else plans.get(key)
    if call is None:
        first, second = (y, x) if swapped else (x, y)
        layouts = for_backend(auxiliary, name).layouts
        plan = autograd.make_plan(first, second, layouts, request, name)
        call = Call(plan, swapped, name, notice)
        if key is not None:
            remember(plans, key, call)
    return call(x, y, auxiliary)


def computable(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both images in dtypes that the backend reads.

    All read the dtype of the computation. Triton's kernels also read half precision, and Numba's
    bytes.
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

    On a CPU torch's filter takes a noticeable part of a call, so images have a kernel there.
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


@functools.cache
def _warn_of_fallback(reason: str, device: str, package: str) -> None:
    warn(
        f"{reason}: {device} runs the reference path, which is many times slower. Install "
        f"{package}, or pass backend='reference' to choose it.",
        RuntimeWarning,
    )
