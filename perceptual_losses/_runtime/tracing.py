"""Who is watching torch: compilers, exports, transforms and batched gradients."""

import torch
from torch import Tensor


def exporting() -> bool:
    """Whether a graph is made to be kept, without the autograd that kernels have around them."""
    if torch.compiler.is_compiling():
        # Not is_exporting(), which torch.compile takes to be true of itself.
        return torch.compiler._is_exporting_flag
    return torch._C._get_tracing_state() is not None


def transform() -> str | None:
    """What is active that differentiates or batches in a way that kernels do not know, if any."""
    if exporting():
        return "an export"
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform"
    # Where dual tensors are made, whose tangents a kernel would drop.
    forward = torch.autograd.forward_ad._current_level >= 0
    return "forward-mode differentiation" if forward else None


def batched(tensor: Tensor) -> bool:
    """Whether it stands for a batch of gradients, as ``is_grads_batched=True`` makes them."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(tensor)
