"""The windows' weight over valid pixels on a CPU."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from ..._runtime.threads import in_threads
from ..request import Definition, centres
from .level import LIGHT, plane_array


def inverse_coverage(valid: Tensor, definition: Definition, dtype: torch.dtype) -> Tensor:
    """The reciprocal of the windows' weight over valid pixels, zero where they have none.

    ``valid`` is ``(N, 1, H, W)``.
    """
    # Not at the top: importing the package does not import Numba.
    from . import kernels

    number = np.dtype(str(dtype).removeprefix("torch."))
    shape = centres(valid, definition).shape
    out = torch.empty(shape, dtype=dtype)
    windows = [kernels.Window((0,) * len(w), np.array(w, number)) for w in definition.windows]
    down, across = map(len, definition.windows)
    columns = -(-(valid.shape[-1] + across) // 64) * 64
    scratch = np.empty((torch.get_num_threads(), down + 3, columns), number)
    padding = getattr(kernels, definition.padding.upper())
    run = functools.partial(
        kernels.inverse_coverage,
        *(plane_array(valid), *windows, padding, np.finfo(number).tiny, scratch, plane_array(out)),
    )
    in_threads(run, shape[0] * shape[2], valid.numel() // LIGHT * 4)
    return out
