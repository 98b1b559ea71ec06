"""The plans that are kept, by the layouts of the images.

A call that has been seen before is one lookup of a key. It skips planning and all checks, except
those of the values of tensors beside the images.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter

from . import autograd
from .backend import NO_AUXILIARY, Auxiliary, Plan

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


def key_beside(key: tuple[Any, ...], *tensors: Any) -> tuple[Any, ...] | None:
    """The key of a call with tensors beside its images.

    Args:
        key: `call_key` of the images.
        tensors: masks, valid pixels and ranges as their user passes them, or ``None``.

    Returns:
        ``None`` if the call cannot be remembered: each must be a plain strided tensor.
    """
    found = [*key]
    for tensor in tensors:
        if tensor is None:
            found.append(None)
            continue
        kind = type(tensor)
        if (
            (kind is not Tensor and kind is not Parameter)
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.is_neg()
            or tensor.is_inference()
        ):
            return None
        found.append((tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() & 15))
    return tuple(found)


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


def remember(plans: Plans, key: tuple[Any, ...], call: Call) -> None:
    """Keeps a call. Images of ever new sizes would fill the memory: then all is planned anew."""
    if len(plans) >= _LIMIT:
        plans.clear()
    plans[key] = call
