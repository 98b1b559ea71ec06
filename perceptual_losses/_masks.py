"""Masks and valid pixels: here they become the weights and the tensors that backends read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import _validation
from ._runtime.tracing import observed
from ._ssim import (
    Auxiliary,
    Request,
    centres,
    compute_dtype,
    halve,
    halve_any,
    halve_valid,
    inverse_coverage,
    num_levels,
)


def auxiliary_tensors(
    mask: Tensor | None,
    valid: Tensor | None,
    ranges: Tensor | None,
    request: Request,
    dtype: torch.dtype,
    backend: str,
) -> Auxiliary:
    """The tensors of each level of a request that has a mask, valid pixels or both.

    Args:
        mask: weights of the pixels, ``(N, 1, H, W)``, or ``None``.
        valid: the pixels that exist, ``(N, 1, H, W)`` and boolean, or ``None``.
        ranges: the range of each image, ``(N,)``, or ``None``.
        request: the request.
        dtype: the dtype of the computation.
        backend: the backend that is asked for.
    """
    weights: list[Tensor] = []
    totals: list[Tensor] = []
    of_pixels: list[Tensor] = []
    coverage: list[Tensor] = []
    if mask is not None and valid is not None:
        mask = torch.where(valid, mask, 0.0)
    for level in range(num_levels(request)):
        if level > 0 and mask is not None:
            mask = halve(mask) if valid is None else halve_valid(mask, valid)
        if level > 0 and valid is not None:
            valid = halve_any(valid)
        if valid is not None:
            of_pixels.append(valid)
            if _needs_coverage(valid, backend):
                coverage.append(inverse_coverage(valid, request.definition, dtype))
        pixels = valid if mask is None else mask
        assert pixels is not None  # Only calls with one of the two come here.
        if request.reduction != "map":
            weights.append(centres(pixels, request.definition))
            totals.append(_total(weights[-1], dtype))
    return Auxiliary(weights, totals, () if ranges is None else (ranges,), of_pixels, coverage)


def _needs_coverage(valid: Tensor, backend: str) -> bool:
    """Whether a backend may read the coverage: on a CPU the march for volumes, and Triton's."""
    return valid.dim() == 5 or valid.device.type != "cpu" or backend == "triton"


def weighted_distance(
    x: Tensor, y: Tensor, mask: Tensor | None, valid: Tensor | None, ranges: Tensor | None
) -> Tensor:
    """The weighted mean of ``|x - y|`` for each image, ``(N,)``, in units of its own range."""
    dtype = compute_dtype(x, y)
    distance = (x.to(dtype) - y.to(dtype)).abs()
    weights = mask
    if valid is not None:
        distance = torch.where(valid, distance, 0.0)
        weights = valid.to(dtype) if mask is None else torch.where(valid, mask, 0.0)
    assert weights is not None  # Only calls with one of the two come here.
    distance = distance.mean(1, keepdim=True)
    total = weights.flatten(1).sum(1)
    _validation.check_total(total)
    total = total.clamp(min=torch.finfo(dtype).tiny)
    mean = (distance * weights).flatten(1).sum(1) / total
    return mean if ranges is None else mean / ranges


def _total(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of each image's weights, ``(N,)``."""
    if weights.dtype == torch.bool and _validation.host_readable(weights) and not observed(weights):
        # Torch takes many times as long. The bytes of booleans need not be 0 and 1.
        counts = [np.count_nonzero(image) for image in weights.numpy().view(np.uint8)]
        # `torch.tensor` takes longer.
        total = torch.from_numpy(np.array(counts, str(dtype).removeprefix("torch.")))
        if all(counts):
            return total
    else:
        total = weights.sum(tuple(range(1, weights.dim())), dtype=dtype)
    _validation.check_total(total)
    return total.clamp(min=torch.finfo(dtype).tiny)
