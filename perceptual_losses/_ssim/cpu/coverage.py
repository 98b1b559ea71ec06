"""The windows' weight over valid pixels on a CPU."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._runtime.threads import in_threads
from ..request import Definition
from .level import LIGHT, plane_array


def inverse_coverage(valid: Tensor, definition: Definition, dtype: torch.dtype) -> Tensor:
    """The reciprocal of the windows' weight over valid pixels, zero where they have none.

    ``valid`` is ``(N, 1, H, W)``.
    """
    # Not at the top: importing the package does not import Numba.
    from . import kernels

    n, _, height, width = valid.shape
    down, across = map(len, definition.windows)
    if definition.padding == "valid":
        height, width = height - down + 1, width - across + 1
    out = torch.empty((n, 1, height, width), dtype=dtype, device=valid.device)
    map_out = plane_array(out)
    # A row of scratch holds a row of pixels with its borders, or a weight for each row of the ring.
    columns = -(-(valid.shape[-1] + max(down, across)) // 64) * 64
    scratch = np.empty((torch.get_num_threads(), down + 6, columns), map_out.dtype)
    run = functools.partial(
        kernels.inverse_coverage,
        *(plane_array(valid), *_arguments(definition, map_out.dtype), scratch, map_out),
    )
    in_threads(run, n * height, valid.numel() // LIGHT * 4)
    return out


@functools.lru_cache(maxsize=16)
def _arguments(definition: Definition, dtype: Any) -> tuple[Any, ...]:
    """The kernel's arguments that only the definition and the dtype decide."""
    from . import kernels

    windows = [kernels.Window((0,) * len(w), np.array(w, dtype)) for w in definition.windows]
    padding = getattr(kernels, definition.padding.upper())
    return *windows, padding, np.finfo(dtype).tiny
