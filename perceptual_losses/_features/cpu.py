"""Where the Numba kernels of features run, and the arrays that they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._runtime.numba_installed import unavailable
from .._runtime.tracing import active_transform, batched


def supports(*tensors: Tensor) -> bool:
    """Whether kernels can take such tensors; elsewhere torch's operations give the same."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return on_cpu and plain(*tensors) and unavailable() is None


def plain(*tensors: Tensor) -> bool:
    """Whether all are plain tensors, and neither torch.compile nor a transform is watching."""
    return (
        all(type(tensor) is Tensor for tensor in tensors)
        and not torch.compiler.is_compiling()
        and active_transform() is None
        and not any(map(batched, tensors))
    )


def array(values: Tensor) -> Any:
    """The tensor's values as a NumPy array; those of bfloat16, which NumPy lacks, as uint16."""
    values = values.detach().contiguous()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
