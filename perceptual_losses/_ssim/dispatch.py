"""The choice of a backend for a call, and the call."""

from __future__ import annotations

import functools
import sys

import torch
from torch import Tensor

from .._runtime.tracing import active_transform, observed
from .._runtime.warnings import warn
from . import autograd, reference
from .autograd import BACKENDS as FAST
from .backend import NO_AUXILIARY, Auxiliary, flat
from .plans import Call, Key, Plans, call_key, for_backend, readable_images, remember
from .request import Request, halves, replaced

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
    key: Key | None,
    notice: str | None = None,
) -> Tensor:
    """The requested value of images that have been checked. The plan is kept for the next call.

    ``key`` is the key of the user's own tensors, or ``None`` for a call that cannot be remembered.
    """
    name = choose_backend(x, y, request, backend)
    gradients, swapped = _num_gradients(x, y)
    if request.reduction == "both" and (name != "numba" or gradients or key is None):
        # Only the march sums both maps, in plain calls without gradients.
        values = []
        for j, half in enumerate(halves(request)):
            # Without a key both halves would find one plan, that of the same copies of the images.
            half_plans, half_key = ({}, None) if key is None else (plans, (*key, j))
            values.append(evaluate(x, y, auxiliary, half, backend, half_plans, half_key))
        return torch.stack(values)
    if name == "reference":
        return reference.evaluate(x, y, auxiliary, request)
    images = readable_images(x, y, name)
    request = replaced(request, gradients=gradients)
    in_order = images[::-1] if swapped else images
    if observed(*images, *flat(auxiliary)):
        return autograd.observed_value(*in_order, for_backend(auxiliary, name), request, name)
    if not any(auxiliary):
        # Plans compare with this object, which is faster than a look at each field.
        auxiliary = NO_AUXILIARY
        # An image that is negated lazily has no key, and its copy has one.
        key = key or call_key(*images)
    call = None if key is None else plans.get(key)
    if call is None:
        layouts = for_backend(auxiliary, name).layouts
        plan = autograd.make_plan(*in_order, layouts, request, name)
        converts = images[0] is not x or images[1] is not y
        call = Call(plan, swapped, converts, name, notice)
        if key is not None:
            remember(plans, key, call)
    # The call finds nothing more to convert.
    return call(*images, auxiliary)


def _num_gradients(x: Tensor, y: Tensor) -> tuple[int, bool]:
    """The number of gradients, and whether the only one is that of the second image."""
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
