"""Checks of the levels of MS-SSIM and of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, get_args

from torch import Tensor

from .._literals import Normalization
from .images import size_text
from .values import describe, finite_number

NORMALIZATIONS = (*get_args(Normalization), None)


def level_weights(weights: Any) -> tuple[float, ...]:
    """The level weights as floats."""
    if isinstance(weights, (str, Tensor)) or not isinstance(weights, Sequence):
        raise TypeError(
            f"weights is {describe(weights)}: pass a list or tuple of numbers, one for each level "
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
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"levels is {describe(value)}: pass 'auto' or an int")
    if not 1 <= int(value) <= count:
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
    most = len(weights) if levels == "auto" else int(levels)
    limits = [_num_levels(side, size, most) for side, size in pairs]
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
