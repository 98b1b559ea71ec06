"""Checks of masks and of valid pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._ssim import compute_dtype
from .tensors import check_plain_tensor, host_readable, kept


def mask_weights(mask: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mask as ``(N, 1, H, W)`` in the dtype that the images are compared in."""
    shape = _check_broadcasts("mask", mask, x, "weight")
    weights: Tensor = kept(mask.detach()).to(compute_dtype(x, y))
    # The least value is NaN where any is.
    if host_readable(weights) and not weights.min() >= 0:
        raise ValueError("mask has weights that are negative or NaN: pass 0 or more for each pixel")
    return weights.expand(shape)


def valid_pixels(valid: Any, x: Tensor) -> Tensor:
    """``valid`` as ``(N, 1, H, W)``."""
    shape = _check_broadcasts("valid", valid, x, "boolean")
    if valid.dtype != torch.bool:
        raise TypeError(
            f"valid is {valid.dtype}: pass booleans, such as valid > 0 or depth.isfinite(); "
            "weights are passed as mask"
        )
    pixels: Tensor = kept(valid).expand(shape)
    return pixels


def _check_broadcasts(name: str, values: Any, x: Tensor, kind: str) -> tuple[int, ...]:
    """The shape ``(N, 1, H, W)`` of ``x``, to which values for each pixel must broadcast."""
    check_plain_tensor(name, values)
    shape = (x.shape[0], 1, *x.shape[2:])
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
    return shape


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
