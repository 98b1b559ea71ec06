"""Questions about who observes torch's operations: compilers, exports, transforms and modes."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.nn import Parameter

# Looked up once: a small step asks them in its backward pass.
_grad_enabled = torch.is_grad_enabled
_is_compiling = torch.compiler.is_compiling
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_batched = torch._C._functorch.is_legacy_batchedtensor


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
    return not _is_compiling() and _is_batched(tensor)


def readable(grad: Tensor) -> bool:
    """Whether kernels may read an upstream gradient: it is a plain tensor and nobody is watching.

    Nobody records a second derivative either.
    """
    return (
        type(grad) is Tensor
        and not _grad_enabled()
        and not _is_compiling()
        and not _num_dispatch_modes()
        and not _is_batched(grad)
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
