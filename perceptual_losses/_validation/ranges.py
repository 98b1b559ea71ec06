"""Checks of the data range: one for all images, or one for each."""

from __future__ import annotations

import functools
import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from .tensors import check_plain_tensor, host_readable
from .values import describe, finite_number


def low_and_length(data_range: Any) -> tuple[float, float]:
    """The value that counts as zero, and the ``L`` of the formulas."""
    if isinstance(data_range, tuple):
        if len(data_range) != 2:
            raise ValueError(
                f"data_range={data_range} has {len(data_range)} entries: pass a number L for "
                "values in [0, L], a pair (low, high) such as (-1, 1), or a tensor with one L for "
                "each image"
            )
        low, high = (finite_number("data_range", bound) for bound in data_range)
        if low >= high:
            raise ValueError(
                f"data_range={data_range} has low >= high: pass (low, high) with low < high"
            )
        return low, high - low
    if isinstance(data_range, Tensor):
        raise TypeError(
            "data_range is a tensor: a range for each image belongs to the images of one call, so "
            "pass it with them, loss(x, y, data_range=ranges)"
        )
    if not isinstance(data_range, Real):
        raise TypeError(
            f"data_range is {describe(data_range)}: pass a number L for values in [0, L], a tuple "
            "(low, high), or torch.tensor([...]) with one L for each image"
        )
    length = finite_number("data_range", data_range)
    if length <= 0:
        raise ValueError(
            f"data_range={length} is not positive: pass L > 0 for values in [0, L], or a pair "
            "(low, high) such as (-1, 1)"
        )
    return 0.0, length


def check_ranges(data_range: Any, x: Tensor) -> None:
    """Refuses anything but a plain tensor ``(N,)`` on the images' device."""
    if not isinstance(data_range, Tensor):
        raise TypeError(
            f"data_range is {describe(data_range)}: pass a tensor (N,) with the range of each "
            "image; one range for all is an option, as in SSIMLoss(data_range=255)"
        )
    check_plain_tensor("data_range", data_range)
    shape = tuple(data_range.shape)
    if shape != (x.shape[0],):
        raise ValueError(
            f"data_range has shape {shape} and x {tuple(x.shape)}: pass a tensor of shape "
            f"({x.shape[0]},), one range for each image; for one range for all pass a Python number"
        )
    if data_range.device != x.device:
        raise ValueError(
            f"data_range is on {data_range.device} and x on {x.device}: pass both on one device, "
            "data_range.to(x.device)"
        )


def ranges_of_images(data_range: Tensor, dtype: torch.dtype) -> Tensor:
    """The range of each image, ``(N,)`` in the dtype that the images are compared in.

    Only a CPU's values are looked at: those of a GPU would have to be waited for.
    """
    # A large kernel empties the caches, after which each function called takes ten microseconds.
    ranges = data_range.detach() if data_range.requires_grad else data_range
    if ranges.dtype != dtype:
        ranges = ranges.to(dtype)
    if host_readable(ranges):
        low, high = _range_bounds(dtype)
        for length in ranges.tolist():
            if not low < length < high:
                raise ValueError(
                    f"data_range={data_range.tolist()}: pass a positive and finite number for each "
                    "image, near to its values"
                )
    return ranges


@functools.cache
def _range_bounds(dtype: torch.dtype) -> tuple[float, float]:
    """The bounds between which ``(k1 L)^2`` and ``(k2 L)^2`` are normal numbers of the dtype."""
    limits = torch.finfo(dtype)
    return 1e4 * math.sqrt(limits.tiny), 1e-4 * math.sqrt(limits.max)


def check_integer_range(name: str, image: Tensor, data_range: float | tuple[float, float]) -> None:
    """Refuses an integer image with a range of length 1: the default, which cannot be meant."""
    is_integer = not image.is_floating_point() and image.dtype != torch.bool
    if is_integer and low_and_length(data_range)[1] == 1:
        raise ValueError(
            f"{name} is {image.dtype} and data_range={data_range}: say the range of integer "
            "images, data_range=255 for uint8, or pass .float() ones of 0 and 1"
        )
