"""Checks of what the public functions are given, before any work.

No check reads the values of an image: that would wait for the GPU, and overshoot beyond the
range is normal while training. Each error says what was given, what is allowed and what to pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ._ssim import Definition, compute_dtype, gaussian, uniform

WINDOWS = ("gaussian", "uniform")
DEFAULT_SIGMA = 1.5
PADDINGS = ("valid", "zeros", "symmetric")
REDUCTIONS = ("mean", "none")
NORMALIZATIONS = ("floor", "relu", "simple", None)


def finite_number(name: str, value: Any) -> float:
    """``value`` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} is {_describe(value)}: pass a Python number (of a tensor, its `.item()`)"
        )
    try:
        as_float = float(value)
    except OverflowError:
        as_float = math.inf
    if not -math.inf < as_float < math.inf:
        raise ValueError(f"{name}={value} is not finite: pass a finite number")
    return as_float


def positive_number(name: str, value: Any) -> float:
    """``value`` as a finite float above zero."""
    as_float = finite_number(name, value)
    if as_float <= 0:
        raise ValueError(f"{name}={value} is not positive: pass a number above 0")
    return as_float


def structural_share(value: Any) -> float:
    """The structural term's share of a mix, as a float from 0 to 1."""
    weight = finite_number("weight", value)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: pass the share of the structural term, from 0 to 1")
    return weight


def check_choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    """Refuses a ``value`` that is not one of ``allowed``."""
    # `in` compares an array element by element.
    if not isinstance(value, (str, type(None))) or value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown: pass one of {allowed}")


def settings(
    *,
    data_range: float | tuple[float, float],
    window: str,
    window_size: int | tuple[int, ...],
    sigma: float | tuple[float, ...],
    k1: float,
    k2: float,
    sample_covariance: bool,
    padding: str,
) -> Definition:
    """The definition that the options describe; each of them is checked."""
    low, length = low_and_length(data_range)
    check_choice("window", window, WINDOWS)
    check_choice("padding", padding, PADDINGS)
    if not isinstance(sample_covariance, bool):
        raise TypeError(f"sample_covariance is {_describe(sample_covariance)}: pass True or False")
    windows = _windows(window, _window_sizes(window_size), sigma)
    if sample_covariance and all(len(taps) == 1 for taps in windows):
        raise ValueError(
            "sample_covariance=True with a window of one pixel, which has no unbiased covariance: "
            "pass a larger window_size"
        )
    root_1, root_2 = positive_number("k1", k1) * length, positive_number("k2", k2) * length
    return Definition(
        windows=windows,
        low=low,
        length=length,
        # A power would raise where a product is infinite; `check_images` refuses the infinity.
        c1=root_1 * root_1,
        c2=root_2 * root_2,
        padding=padding,
        sample_covariance=sample_covariance,
    )


def _window_sizes(window_size: Any) -> tuple[int, ...]:
    """The window's size along each axis, or one for all axes."""
    sizes = window_size if isinstance(window_size, tuple) else (window_size,)
    if len(sizes) not in (1, 2, 3):
        raise ValueError(
            f"window_size={window_size} has {len(sizes)} entries: pass an odd int, or one for each "
            "axis: (rows, columns), or (depth, rows, columns) for volumes"
        )
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(
                f"window_size is {_describe(size)}: pass an odd int, such as 11, or a tuple of them"
            )
        if size < 1 or size % 2 == 0:
            raise ValueError(f"window_size={size} is not odd and positive: pass 11, 7 or 5, say")
    return sizes


def _windows(
    window: str, sizes: tuple[int, ...], sigma: float | tuple[float, ...]
) -> tuple[tuple[float, ...], ...]:
    """The taps along each axis, or one window for all axes."""
    if window == "uniform":
        if not isinstance(sigma, Real) or sigma != DEFAULT_SIGMA:
            raise ValueError(
                f"sigma={sigma} with window='uniform', whose pixels all weigh the same: leave "
                "sigma out and pass window_size, or pass window='gaussian'"
            )
        return tuple([uniform(size) for size in sizes])
    if isinstance(sigma, list):
        raise TypeError("sigma is of type list: pass a number, or a tuple with one for each axis")
    sigmas = sigma if isinstance(sigma, tuple) else (sigma,)
    sigmas = tuple([positive_number("sigma", value) for value in sigmas])
    axes = max(len(sigmas), len(sizes))
    if axes > 3 or {len(sigmas), len(sizes)} - {1, axes}:
        raise ValueError(
            f"sigma={sigma} has {len(sigmas)} entries and window_size {len(sizes)}: pass one "
            "number, or as many as the images have axes"
        )
    sizes, sigmas = sizes * (axes // len(sizes)), sigmas * (axes // len(sigmas))
    return tuple([gaussian(*pair) for pair in zip(sizes, sigmas, strict=True)])


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
            f"data_range is {_describe(data_range)}: pass a number L for values in [0, L], a tuple "
            "(low, high), or torch.tensor([...]) with one L for each image"
        )
    length = finite_number("data_range", data_range)
    if length <= 0:
        raise ValueError(
            f"data_range={length} is not positive: pass L > 0 for values in [0, L], or a pair "
            "(low, high) such as (-1, 1)"
        )
    return 0.0, length


def ranges_of_images(data_range: Any, x: Tensor, y: Tensor) -> Tensor:
    """The range of each image, ``(N,)`` in the dtype that the images are compared in.

    Only a CPU's values are looked at: those of a GPU would have to be waited for.
    """
    if not isinstance(data_range, Tensor):
        raise TypeError(
            f"data_range is {_describe(data_range)}: pass a tensor (N,) with the range of each "
            "image; one range for all is an option, as in SSIMLoss(data_range=255)"
        )
    check_plain_tensor("data_range", data_range)
    shape = tuple(data_range.shape)
    if shape != (x.shape[0],):
        raise ValueError(
            f"data_range has shape {shape} and x {tuple(x.shape)}: pass a tensor of shape "
            f"({x.shape[0]},), one range for each image (of a range for all, a Python number)"
        )
    if data_range.device != x.device:
        raise ValueError(
            f"data_range is on {data_range.device} and x on {x.device}: pass both on one device, "
            "data_range.to(x.device)"
        )
    ranges: Tensor = _kept(data_range.detach()).to(compute_dtype(x, y))
    if _host_readable(ranges):
        limits = torch.finfo(ranges.dtype)
        # Their squares are in the formulas, times those of k1 and k2.
        if not ((ranges > 1e4 * limits.tiny**0.5) & (ranges < 1e-4 * limits.max**0.5)).all():
            raise ValueError(
                f"data_range={data_range.tolist()}: pass a positive and finite number for each "
                "image, near to its values"
            )
    return ranges


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
                "(N, C, D, H, W); unsqueeze(0) adds a missing batch or channel dimension"
            )
    if x.shape != y.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass equal shapes; nothing is "
            "broadcast (use expand_as)"
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
            _check_integer_range(name, image, data_range)
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
        raise ValueError(
            f"window_size or sigma has {len(windows)} entries and x has shape {tuple(x.shape)}: "
            f"pass one number, or {len(sides)}, one for each axis after the channels"
        )
    sizes = [len(window) for window in windows] * (len(sides) // len(windows))
    if all(size <= side for size, side in zip(sizes, sides, strict=True)):
        return
    if len(windows) > 1:
        raise ValueError(
            f"window_size={tuple(sizes)} is larger than the image, {size_text(x)}: pass a smaller "
            "one, or larger images"
        )
    size, smallest = sizes[0], min(sides)
    fits = f"window_size={smallest - 1 + smallest % 2} or " if smallest > 0 else ""
    raise ValueError(
        f"window_size={size} is larger than the image, {size_text(x)}: pass {fits}images of at "
        f"least {size_text(x, size)}"
    )


def check_colour_images(name: str, image: Any, data_range: float | tuple[float, float]) -> None:
    """Refuses everything but a batch of grey or colour images, or of frames of them."""
    check_plain_tensor(name, image)
    shape = tuple(image.shape)
    if image.dim() not in (4, 5):
        raise ValueError(
            f"{name} has shape {shape}: pass images (N, C, H, W) or frames (N, C, T, H, W); "
            "unsqueeze(0) adds a missing batch dimension"
        )
    if 0 in (shape[0], *shape[2:-2]):
        raise ValueError(f"{name} has shape {shape}, which holds no image: pass at least one")
    if image.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} has shape {shape} with {image.shape[1]} channels: the networks know images of "
            "3 channels, and 1 that is repeated; pass those that are colours"
        )
    _check_integer_range(name, image, data_range)


def check_plain_tensor(name: str, values: Any) -> None:
    """Refuses everything but a dense, strided tensor of real values."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} is {_describe(values)}: pass a torch.Tensor")
    if values.is_complex():
        raise TypeError(f"{name} is {values.dtype}: pass real values, such as its abs()")
    if values.layout != torch.strided or values.is_nested or values.is_quantized:
        kind = "nested" if values.is_nested else f"{values.layout}, {values.dtype}"
        raise TypeError(
            f"{name} is {kind}: pass a plain tensor, such as its to_dense() or dequantize()"
        )


def check_differentiable(name: str, image: Any) -> None:
    """Refuses an image that cannot have a gradient."""
    check_plain_tensor(name, image)
    if not image.is_floating_point():
        raise TypeError(f"{name} is {image.dtype} and has no gradient: pass {name}.float()")


def _check_integer_range(name: str, image: Tensor, data_range: float | tuple[float, float]) -> None:
    """Refuses an integer image with a range of length 1, the default, which it can't mean."""
    is_integer = not image.is_floating_point() and image.dtype != torch.bool
    if is_integer and low_and_length(data_range)[1] == 1:
        raise ValueError(
            f"{name} is {image.dtype} and data_range={data_range}: say the range of integer "
            "images, data_range=255 for uint8, or pass .float() ones of 0 and 1"
        )


def size_text(x: Tensor, side: int | None = None) -> str:
    """The spatial size of ``x``, or of a cube with that side, as text: ``"64x48"``."""
    return "x".join(str(length if side is None else side) for length in x.shape[2:])


def mask_weights(mask: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mask as ``(N, 1, H, W)`` in the dtype that the images are compared in."""
    shape = _check_broadcasts("mask", mask, x, "weight")
    if _host_readable(mask) and not (mask >= 0).all():
        raise ValueError("mask has weights that are negative or NaN: pass 0 or more for each pixel")
    weights: Tensor = _kept(mask.detach()).to(compute_dtype(x, y)).expand(shape)
    return weights


def valid_pixels(valid: Any, x: Tensor) -> Tensor:
    """``valid`` as ``(N, 1, H, W)``."""
    shape = _check_broadcasts("valid", valid, x, "boolean")
    if valid.dtype != torch.bool:
        raise TypeError(
            f"valid is {valid.dtype}: pass booleans, such as valid > 0 or depth.isfinite(); "
            "weights are passed as mask"
        )
    pixels: Tensor = _kept(valid).expand(shape)
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


def _kept(values: Tensor) -> Tensor:
    """Values that autograd may keep: a copy of those that were made in inference mode."""
    if torch.compiler.is_compiling() or not values.is_inference():
        return values
    return values.clone()


def _host_readable(values: Tensor) -> bool:
    """Whether values can be read without waiting for a GPU, and outside any tracing."""
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def check_total(total: Tensor) -> None:
    """Refuses a mask with a total weight that nothing can be divided by, if it is host-readable."""
    if not _host_readable(total):
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


def level_weights(weights: Any) -> tuple[float, ...]:
    """The level weights as floats."""
    if isinstance(weights, (str, Tensor)) or not isinstance(weights, Sequence):
        raise TypeError(
            f"weights is {_describe(weights)}: pass a list or tuple of numbers, one for each level "
            "(of a tensor, its `.tolist()`)"
        )
    numbers = tuple(finite_number("weights", weight) for weight in weights)
    if not numbers or min(numbers) < 0 or sum(numbers) <= 0:
        raise ValueError(
            f"weights={numbers}: pass at least one weight, none negative and not all zero"
        )
    return numbers


def check_levels(value: Any, count: int) -> None:
    """Refuses a number of levels that ``count`` weights do not allow."""
    if isinstance(value, str) and value == "auto":
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"levels is {_describe(value)}: pass 'auto' or an int")
    if not 1 <= value <= count:
        raise ValueError(
            f"levels={value}: pass 'auto' or 1 to {count}, the number of weights (or more weights)"
        )


def smallest_side(levels: int, window_size: int) -> int:
    """The side of the smallest images that have so many levels: the window fits into the last."""
    return int((window_size - 1) * 2 ** (levels - 1) + 1)


def fit_levels(
    weights: tuple[float, ...], levels: int | str, x: Tensor, windows: Sequence[int]
) -> tuple[tuple[float, ...], str | None]:
    """The weights of the levels that are used, and a warning if ``"auto"`` leaves some out.

    ``windows`` has the size of the window along each axis. The axis with the least room decides.
    """
    pairs = list(zip(x.shape[2:], windows, strict=True))
    limits = [_num_levels(side, size, len(weights)) for side, size in pairs]
    fits = min(limits)
    window_size = windows[0] if len(set(windows)) == 1 else tuple(windows)

    def least(count: int) -> str:
        return "x".join(str(smallest_side(count, size)) for size in windows)

    notice = None
    if levels == "auto":
        count = fits
        if count < len(weights):
            notice = (
                f"{size_text(x)} pixels fit {count} of {len(weights)} MS-SSIM levels with "
                f"window_size={window_size}: the weights of those levels are used, scaled to the "
                f"same sum. Pass levels={count} to choose this, or images of at least "
                f"{least(len(weights))}."
            )
    else:
        count = int(levels)
        if count > fits:
            side = -(-x.shape[2 + limits.index(fits)] // 2 ** (count - 1))
            smaller = side - 1 + side % 2
            raise ValueError(
                f"levels={count} with window_size={window_size} needs images of at least "
                f"{least(count)}, and these are {size_text(x)}: pass levels={fits}, "
                f"levels='auto' or window_size={smaller}"
            )
    if count == len(weights):
        return weights, notice
    if sum(weights[:count]) <= 0:
        raise ValueError(
            f"weights={weights} leave no weight to the {count} levels that are used: pass weights "
            "with a positive one among the first"
        )
    scale = sum(weights) / sum(weights[:count])
    return tuple(weight * scale for weight in weights[:count]), notice


def _num_levels(side: int, window_size: int, most: int) -> int:
    """The number of levels that a side has room for."""
    return sum(1 for level in range(1, most + 1) if smallest_side(level, window_size) <= side)


def _describe(value: Any) -> str:
    kind = type(value).__name__
    short = value is None or isinstance(value, (bool, int, float, str))
    return f"{value!r} ({kind})" if short else f"of type {kind}"
