"""Checks of masks and of valid pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ssim import compute_dtype
from .tensors import check_plain_tensor, host_readable, kept


def mask_weights(mask: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mask as ``(N, 1, H, W)`` in the dtype that the images are compared in."""
    shape = _check_broadcasts("mask", mask, x, "weight")
    # The least value is NaN where any is.
    if host_readable(mask) and not mask.min() >= 0:
        raise ValueError("mask has weights that are negative or NaN: pass 0 or more for each pixel")
    weights: Tensor = kept(mask.detach()).to(compute_dtype(x, y)).expand(shape)
    return weights


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
    try:
        fits = torch.broadcast_shapes(values.shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
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
    limits = torch.finfo(total.dtype)
    usable = (total >= limits.tiny) & (total <= limits.max)
    others = (~usable).flatten().nonzero().flatten().tolist()
    if others:
        raise ValueError(
            f"mask or valid gives a total weight of {total.flatten()[others].tolist()} to image "
            f"{others} of the batch, which is not positive and finite: weights count at the "
            "centres of windows, so with padding='valid' those near the border do not (at each "
            "level of MS-SSIM); "
            "leave such images out, or, if only their border has weight, pass padding='symmetric'"
        )
