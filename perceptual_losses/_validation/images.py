"""Checks of the two images that are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._runtime.shards import is_distributed
from .._ssim import Definition, compute_dtype
from . import axes
from .ranges import check_integer_range
from .tensors import check_plain_tensor


def check_images(
    x: Any, y: Any, definition: Definition, data_range: float | tuple[float, float] | None
) -> None:
    """Refuses two images that the definition does not fit.

    Without a ``data_range`` each image has its own.
    """
    for name, image in (("x", x), ("y", y)):
        check_plain_tensor(name, image)
    for name, image in (("x", x), ("y", y)):
        if image.dim() not in (4, 5):
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}: pass images (N, C, H, W) or volumes "
                f"(N, C, D, H, W){axes.missing_axes(name, tuple(image.shape))}"
            )
    if x.shape != y.shape:
        shapes = {"x": tuple(x.shape), "y": tuple(y.shape)}
        advice = [axes.channels_last(name, shape) for name, shape in shapes.items()]
        raise ValueError(
            f"x has shape {shapes['x']} and y {shapes['y']}: pass "
            f"{advice[0] or advice[1] or 'equal shapes; nothing is broadcast (use expand_as)'}"
        )
    if x.device != y.device:
        raise ValueError(
            f"x is on {x.device} and y on {y.device}: pass both on one device, y.to(x.device)"
        )
    if 0 in x.shape[:2]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, which holds no image: pass at least one image and "
            "one channel"
        )
    check_window(definition, x)
    if data_range is not None:
        for name, image in (("x", x), ("y", y)):
            check_integer_range(name, image, data_range)
    dtype = compute_dtype(x, y)
    limits = torch.finfo(dtype)
    for name, constant in (("k1", definition.c1), ("k2", definition.c2)):
        if not limits.tiny <= constant <= limits.max:
            raise ValueError(
                f"({name} L)^2 is {constant:.3g} with data_range={data_range}, beyond {dtype}: "
                "pass a range nearer to 1, and images in its units"
            )


def check_window(definition: Definition, x: Tensor) -> None:
    """Refuses images that the window does not fit into."""
    sides, windows = x.shape[2:], definition.windows
    if len(windows) not in (1, len(sides)):
        advice = axes.as_images_or_volumes("x", tuple(x.shape))
        raise ValueError(
            f"window_size or sigma has {len(windows)} entries and x has shape {tuple(x.shape)}: "
            f"pass one number, or {len(sides)}, one for each axis after the channels"
            + (f"; or pass {advice}, and y alike" if advice else "")
        )
    sizes = [len(window) for window in windows] * (len(sides) // len(windows))
    if all(size <= side for size, side in zip(sizes, sides, strict=True)):
        return
    window_size = sizes[0] if len(windows) == 1 else tuple(sizes)
    text = f"window_size={window_size} is larger than the image, {size_text(x)}"
    advice = axes.as_images_or_volumes("x", tuple(x.shape))
    if advice is not None:
        raise ValueError(f"{text}, and x has shape {tuple(x.shape)}: pass {advice}, and y alike")
    if len(windows) > 1:
        raise ValueError(f"{text}: pass a smaller one, or larger images")
    size, smallest = sizes[0], min(sides)
    fits = f"window_size={smallest - 1 + smallest % 2} or " if smallest > 0 else ""
    raise ValueError(f"{text}: pass {fits}images of at least {size_text(x, size)}")


def check_colour_images(name: str, image: Any, data_range: float | tuple[float, float]) -> None:
    """Refuses everything but a batch of grey or colour images, or of frames of them."""
    check_plain_tensor(name, image)
    if is_distributed(image):
        raise TypeError(
            f"{name} is a DTensor, which only the call of a loss takes: pass {name}.to_local() or "
            f"{name}.full_tensor()"
        )
    shape = tuple(image.shape)
    if image.dim() not in (4, 5):
        raise ValueError(
            f"{name} has shape {shape}: pass images (N, C, H, W) or frames (N, C, T, H, W)"
            f"{axes.missing_axes(name, shape)}"
        )
    if 0 in (shape[0], *shape[2:-2]):
        raise ValueError(f"{name} has shape {shape}, which holds no image: pass at least one")
    if image.shape[1] not in (1, 3):
        advice = axes.as_images_or_frames(name, shape)
        raise ValueError(
            f"{name} has shape {shape} with {image.shape[1]} channels: the networks know images of "
            f"3 channels, and 1 that is repeated; pass {advice or 'those that are colours'}"
        )
    check_integer_range(name, image, data_range)


def size_text(x: Tensor, side: int | None = None) -> str:
    """The spatial size of ``x``, or of a cube with that side, as text: ``"64x48"``."""
    return "x".join(str(length if side is None else side) for length in x.shape[2:])
