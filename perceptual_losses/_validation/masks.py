"""Checks of masks and of valid pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tensors import check_plain_tensor, host_readable


def check_mask(mask: Any, x: Tensor) -> None:
    """Refuses anything but weights that broadcast to ``(N, 1, H, W)``, on the images' device."""
    _check_broadcasts("mask", mask, x, "weight")


def mask_weights(mask: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as ``(N, 1, H, W)`` in the dtype that the images are compared in."""
    weights = mask.detach().to(dtype)
    # The least value is NaN where any is.
    if host_readable(weights) and not weights.min() >= 0:
        raise ValueError("mask has weights that are negative or NaN: pass 0 or more for each pixel")
    return weights.expand(_shape(x))


def check_valid(valid: Any, x: Tensor) -> None:
    """Refuses anything but booleans that broadcast to ``(N, 1, H, W)``, on the images' device."""
    _check_broadcasts("valid", valid, x, "boolean")
    if valid.dtype != torch.bool:
        raise TypeError(
            f"valid is {valid.dtype}: pass booleans, such as valid > 0 or depth.isfinite(); "
            "weights are passed as mask"
        )


def valid_pixels(valid: Tensor, x: Tensor) -> Tensor:
    """``valid`` as ``(N, 1, H, W)``."""
    shape = _shape(x)
    # After a large kernel even an operation that changes nothing takes long.
    return valid if valid.shape == shape else valid.expand(shape)


def _shape(x: Tensor) -> tuple[int, ...]:
    """The shape ``(N, 1, H, W)`` of values for each pixel of ``x``."""
    return x.shape[0], 1, *x.shape[2:]


def _check_broadcasts(name: str, values: Any, x: Tensor, kind: str) -> None:
    """Refuses values that do not broadcast to ``(N, 1, H, W)`` or are on another device."""
    check_plain_tensor(name, values)
    shape = _shape(x)
    sides = (1,) * (len(shape) - values.dim()) + tuple(values.shape)
    # `torch.broadcast_shapes` takes longer than the kernel on small images.
    fits = len(sides) == len(shape) and all(a in (1, b) for a, b in zip(sides, shape, strict=True))
    if not fits:
        raise ValueError(
            f"{name} has shape {tuple(values.shape)}: pass one that broadcasts to {shape}, one "
            f"{kind} for each pixel and image"
        )
    if values.device != x.device:
        raise ValueError(
            f"{name} is on {values.device} and x on {x.device}: pass both on one device, "
            f"{name}.to(x.device)"
        )


def check_total(total: Tensor) -> None:
    """Refuses a mask with a total weight that nothing can be divided by, if it is host-readable."""
    if not host_readable(total):
        return
    # NumPy's operations on few values take a tenth of the time of torch's.
    values = total.numpy()
    limits = np.finfo(values.dtype)
    usable = (values >= limits.tiny) & (values <= limits.max)
    if not usable.all():
        others = np.flatnonzero(~usable).tolist()
        raise ValueError(
            f"mask or valid gives a total weight of {values[others].tolist()} to image "
            f"{others} of the batch, which is not positive and finite: weights count at the "
            "centres of windows, so with padding='valid' those near the border do not (at each "
            "level of MS-SSIM); "
            "leave such images out, or, if only their border has weight, pass padding='symmetric'"
        )
