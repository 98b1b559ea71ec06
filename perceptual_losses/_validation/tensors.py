"""Checks of tensors that do not depend on their meaning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .values import describe

# Looked up once, because calls with a mask, valid pixels or ranges ask all of them.
_is_compiling = torch.compiler.is_compiling
_tracing_state = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active
_num_dispatch_modes = torch._C._len_torch_dispatch_stack


def check_plain_tensor(name: str, values: Any) -> None:
    """Refuses everything but a dense, strided tensor of real values."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is {describe(values)}: pass a torch.Tensor")
    if values.is_complex():
        raise TypeError(f"{name} is {values.dtype}: pass real values, such as its abs()")
    if values.layout != torch.strided or values.is_nested or values.is_quantized:
        kind = "nested" if values.is_nested else f"{values.layout}, {values.dtype}"
        raise TypeError(
            f"{name} is {kind}: pass a plain tensor, such as its to_dense() or dequantize()"
        )


def check_differentiable(name: str, image: Any) -> None:
    """Refuses an image that cannot have a gradient."""
    check_plain_tensor(name, image)
    if not image.is_floating_point():
        raise TypeError(f"{name} is {image.dtype} and has no gradient: pass {name}.float()")


def kept(values: Tensor | None) -> Tensor | None:
    """The values as a tensor that autograd may keep, or ``None``.

    Values that were made in inference mode or are negated lazily are copied.
    """
    if values is None or torch.compiler.is_compiling():
        return values
    values = values.resolve_neg()
    return values.clone() if values.is_inference() else values


def host_readable(values: Tensor) -> bool:
    """Whether values can be read without waiting for a GPU, and outside any tracing."""
    return (
        values.device.type == "cpu"
        and not _is_compiling()
        and _tracing_state() is None
        and not _transforms_active()
        # The mode of torch.func.linearize records operations. In others tensors have no values.
        and not _num_dispatch_modes()
    )
