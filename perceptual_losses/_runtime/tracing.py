"""Questions about who observes torch's operations: compilers, exports, transforms and modes."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter


def exporting() -> bool:
    """Whether a graph is recorded to be stored, without the autograd that surrounds kernels."""
    if torch.compiler.is_compiling():
        # Not is_exporting(), which torch.compile takes to be true of itself.
        return torch.compiler._is_exporting_flag
    return torch._C._get_tracing_state() is not None


def active_transform() -> str | None:
    """The name of whatever differentiates or batches in a way that kernels do not support."""
    if exporting():
        return "an export"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform"
    # Dual tensors may exist here, and a kernel would drop their tangents.
    forward = forward_ad._current_level >= 0
    return "forward-mode differentiation" if forward else None


def batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for a batch of gradients, as ``is_grads_batched=True`` makes them."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(tensor)


def readable(grad: Tensor) -> bool:
    """Whether kernels may read an upstream gradient: it is a plain tensor and nobody is watching.

    Nobody records a second derivative either.
    """
    return (
        type(grad) is Tensor
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._functorch.is_legacy_batchedtensor(grad)
    )


def observed(*tensors: Any) -> bool:
    """Whether kernels must be called through torch's dispatcher, which costs as much as a launch.

    torch.compile, a dispatch mode or a tensor subclass has to see the operators, and only the
    dispatcher resolves a lazy negative bit.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or not all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
        or any(tensor.is_neg() for tensor in tensors)
    )


def refuse_scripting(module: Any) -> NoReturn:
    """Refuses ``torch.jit.script``, which calls this on each module that it is about to compile."""
    raise RuntimeError(
        f"torch.jit.script cannot compile {type(module).__name__}: pass the model with the loss to "
        "torch.export.export or torch.jit.trace, or script only the model"
    )
