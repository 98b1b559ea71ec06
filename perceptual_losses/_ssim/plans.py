"""The calls that are remembered, each with its plan, by the layouts of their tensors.

A call on tensors like earlier ones is one lookup of a key: it skips the planning and the checks of
the tensors' forms. The values of masks, valid pixels and ranges are checked in each call, because
they may have changed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter

from . import autograd
from .backend import NO_AUXILIARY, Auxiliary, Plan
from .request import compute_dtype, replaced

_LIMIT = 256

Key = tuple[Any, ...]

# Looked up here once, because each call asks all of them.
_is_compiling = torch.compiler.is_compiling
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active
_grad_enabled = torch.is_grad_enabled


def call_key(x: Any, y: Any, *extras: Any, gradients: int | None = None) -> Key | None:
    """The key of a call: everything of its tensors that a plan depends on, before conversions.

    Args:
        x: the first image, which is not checked yet and may be anything.
        y: the second image, likewise.
        extras: a mask, valid pixels and ranges as the user passes them, each of which may be
            ``None``. Without them they need not be given.
        gradients: 0 if no image has a gradient, 1 if the first has one, 2 if the second, 3 if both.
            By default the images that require one have one, while autograd records.

    Returns:
        The key, or ``None`` if the call cannot be remembered. Both images must be plain strided
        tensors, and neither torch.compile, a dispatch mode, an export, torch.func nor forward-mode
        differentiation may be watching. Each extra must be a plain strided tensor that was not made
        in inference mode.
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
    key = (
        *(x.dtype, x.shape, x.stride(), x.data_ptr() & 15, x.device),
        *(y.dtype, y.shape, y.stride(), y.data_ptr() & 15, y.device, gradients),
    )
    return _with_extras(key, extras) if extras else key


def _with_extras(key: Key, extras: Sequence[Any]) -> Key | None:
    """The key with everything of each extra but its values, or ``None``."""
    extended = [*key]
    for tensor in extras:
        if tensor is None:
            extended.append(None)
            continue
        kind = type(tensor)
        # Negated tensors and those of inference mode are copied, perhaps with other strides.
        if (
            (kind is not Tensor and kind is not Parameter)
            or tensor.layout is not torch.strided
            or tensor.is_nested
            or tensor.is_neg()
            or tensor.is_inference()
        ):
            return None
        extended.append(
            (tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() & 15, tensor.device)
        )
    return tuple(extended)


def readable_images(x: Tensor, y: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Both images as the backend's kernels can read them; those that they can read already stay.

    Each backend reads the dtype of the computation. Triton's kernels also read half precision, and
    Numba's also bytes.
    """
    if not torch.compiler.is_compiling():
        # Kernels read memory, where a lazily negated image has the other sign.
        x, y = x.resolve_neg(), y.resolve_neg()
    if backend == "triton" and x.is_floating_point() and y.is_floating_point():
        return x, y
    dtype = compute_dtype(x, y)
    x, y = (a if backend == "numba" and a.dtype == torch.uint8 else a.to(dtype) for a in (x, y))
    return x, y


def for_backend(auxiliary: Auxiliary, backend: str) -> Auxiliary:
    """The auxiliary tensors as the backend reads them.

    Triton's kernels read weights that sum to one for each image, and no totals.
    """
    if backend != "triton":
        return auxiliary
    weights = [
        weight.to(total.dtype) / total.reshape(-1, *[1] * (weight.dim() - 1))
        for weight, total in zip(auxiliary.weights, auxiliary.totals, strict=True)
    ]
    return replaced(auxiliary, weights=weights, totals=())


class Call(NamedTuple):
    """A call that has been planned.

    Attributes:
        plan: the plan for images of these layouts.
        swapped: whether the second image takes the first place, because only it has a gradient.
        converts: whether the images are converted first, because the backend cannot read them.
        backend: the name of the plan's backend.
        notice: a warning that each such call gives, or ``None``.
    """

    plan: Plan
    swapped: bool
    converts: bool
    backend: str
    notice: str | None

    def __call__(self, x: Tensor, y: Tensor, auxiliary: Auxiliary = NO_AUXILIARY) -> Tensor:
        if auxiliary is not NO_AUXILIARY:
            auxiliary = for_backend(auxiliary, self.backend)
        if self.converts:
            x, y = readable_images(x, y, self.backend)
        if self.swapped:
            x, y = y, x
        if not self.plan.request.gradients:
            return self.plan.forward(x, y, auxiliary).value
        value: Tensor = autograd.apply_plan(x, y, self.plan, self.backend, auxiliary)
        return value


Plans = dict[Key, Call]


def remember(plans: Plans, key: Key, call: Call) -> None:
    """Keeps a call. If there are too many, all others are dropped first.

    Images of ever new sizes would fill the memory otherwise.
    """
    if len(plans) >= _LIMIT:
        plans.clear()
    plans[key] = call
