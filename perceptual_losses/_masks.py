"""Masks and valid pixels: here they become the weights and the tensors that backends read."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _validation
from ._ssim import Auxiliary, Request, centres, compute_dtype, halve, halve_valid, inverse_coverage


def pixel_weights(x: Tensor, y: Tensor, mask: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """The weight of each pixel, ``(N, 1, H, W)`` in the dtype of the computation, or ``None``.

    Pixels that are not valid have no weight.
    """
    if mask is not None:
        mask = _validation.mask_weights(mask, x, y)
        return mask if valid is None else torch.where(valid, mask, 0.0)
    return None if valid is None else valid.to(compute_dtype(x, y))


def auxiliary_tensors(
    weights: Tensor | None, valid: Tensor | None, ranges: Tensor | None, request: Request
) -> Auxiliary:
    """The tensors of each level of a request.

    Args:
        weights: the `pixel_weights`.
        valid: the pixels that exist, ``(N, 1, H, W)`` and boolean, or ``None``.
        ranges: the range of each image, ``(N,)``, or ``None``.
        request: the request.
    """
    of_images = () if ranges is None else (ranges,)
    if weights is None:
        return Auxiliary(ranges=of_images)
    definition = request.definition
    of_maps, of_pixels, coverage = [], [], []
    for level in range(max(1, len(request.exponents))):
        if level > 0 and valid is not None:
            present = halve(valid.to(weights.dtype))
            weights, valid = halve_valid(weights, valid), present > 0
        elif level > 0:
            weights = halve(weights)
        if valid is not None:
            of_pixels.append(valid)
            coverage.append(inverse_coverage(valid, definition, weights.dtype))
        if request.reduction != "map":
            of_maps.append(_normalized(centres(weights, definition)))
    return Auxiliary(of_maps, of_images, of_pixels, coverage)


def weighted_distance(
    x: Tensor, y: Tensor, weights: Tensor, valid: Tensor | None, ranges: Tensor | None
) -> Tensor:
    """The weighted mean of ``|x - y|`` for each image, ``(N,)``, in units of its own range."""
    dtype = compute_dtype(x, y)
    distance = (x.to(dtype) - y.to(dtype)).abs()
    if valid is not None:
        distance = torch.where(valid, distance, 0.0)
    distance = distance.mean(1, keepdim=True)
    total = weights.flatten(1).sum(1)
    _validation.check_total(total)
    total = total.clamp(min=torch.finfo(weights.dtype).tiny)
    mean = (distance * weights).flatten(1).sum(1) / total
    return mean if ranges is None else mean / ranges


def _normalized(weights: Tensor) -> Tensor:
    """The weights of the map's values, summing to one for each image."""
    total = weights.sum(tuple(range(1, weights.dim())), keepdim=True)
    _validation.check_total(total)
    return weights / total.clamp(min=torch.finfo(total.dtype).tiny)
