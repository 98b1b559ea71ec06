"""Where the Numba kernels of features run."""

import functools
from typing import Any

import torch
from torch import Tensor

from .._runtime.numba_installed import unavailable
from .._runtime.tracing import active_transform, batched


def runs(*tensors: Tensor) -> bool:
    """Whether there are kernels for such tensors: torch's operations give the same elsewhere."""
    return (
        all(type(tensor) is Tensor and tensor.device.type == "cpu" for tensor in tensors)
        and not torch.compiler.is_compiling()
        and active_transform() is None
        and not any(map(batched, tensors))
        and unavailable() is None
    )


@functools.cache
def kernels() -> Any:
    """The kernels, which take a moment to import."""
    from . import cpu_kernels

    return cpu_kernels


def array(values: Tensor) -> Any:
    """For a kernel: NumPy has no bfloat16, but its bits."""
    values = values.detach().contiguous()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
