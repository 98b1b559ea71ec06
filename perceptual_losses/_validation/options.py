"""Checks of the options that define a similarity: the window, the constants and the padding."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, get_args

from .._literals import Padding, Reduction, Window
from .._ssim import Definition, gaussian, uniform
from .ranges import low_and_length
from .values import as_tuple, check_choice, describe, finite_number, positive_number

WINDOWS = get_args(Window)
DEFAULT_SIGMA = 1.5
PADDINGS = get_args(Padding)
REDUCTIONS = get_args(Reduction)


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
        raise TypeError(f"sample_covariance is {describe(sample_covariance)}: pass True or False")
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
    sizes = as_tuple(window_size)
    sizes = sizes if isinstance(sizes, tuple) else (sizes,)
    if len(sizes) not in (1, 2, 3):
        raise ValueError(
            f"window_size={window_size} has {len(sizes)} entries: pass an odd int, or one for each "
            "axis: (rows, columns), or (depth, rows, columns) for volumes"
        )
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, (int, Integral)):
            raise TypeError(
                f"window_size is {describe(size)}: pass an odd int, such as 11, or a tuple of them"
            )
        if size < 1 or size % 2 == 0:
            raise ValueError(f"window_size={size} is not odd and positive: pass 11, 7 or 5, say")
    return tuple([int(size) for size in sizes])


def _windows(
    window: str, sizes: tuple[int, ...], sigma: float | tuple[float, ...]
) -> tuple[tuple[float, ...], ...]:
    """The taps along each axis, or one window for all axes."""
    if window == "uniform":
        if not isinstance(sigma, Real) or sigma != DEFAULT_SIGMA:
            raise ValueError(
                f"sigma={sigma!r} with window='uniform', whose pixels all weigh the same: leave "
                "sigma out and pass window_size, or pass window='gaussian'"
            )
        return tuple([uniform(size) for size in sizes])
    sigmas = as_tuple(sigma)
    sigmas = sigmas if isinstance(sigmas, tuple) else (sigmas,)
    sigmas = tuple([positive_number("sigma", value) for value in sigmas])
    axes = max(len(sigmas), len(sizes))
    if axes > 3 or {len(sigmas), len(sizes)} - {1, axes}:
        raise ValueError(
            f"sigma={sigma} has {len(sigmas)} entries and window_size {len(sizes)}: pass one "
            "number, or as many as the images have axes"
        )
    sizes, sigmas = sizes * (axes // len(sizes)), sigmas * (axes // len(sigmas))
    return tuple([gaussian(*pair) for pair in zip(sizes, sigmas, strict=True)])


def structural_share(value: Any) -> float:
    """The structural term's share of a mix, as a float from 0 to 1."""
    weight = finite_number("weight", value)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: pass the share of the structural term, from 0 to 1")
    return weight
