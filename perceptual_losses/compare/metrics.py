"""The metrics' names and directions, and their statistics over all pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .files import Row

WINDOW = 11
"""The default window of `ssim` in pixels."""

BOUND = 1e-6
"""The largest accepted difference between SSIM and scikit-image's."""

METRICS = {
    "psnr": "PSNR",
    "mse": "MSE",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "vgg": "VGG",
    "lpips": "LPIPS",
}
"""The titles of the metrics by their keys in rows."""

LOWER_IS_BETTER = {"mse", "vgg", "lpips"}

STATISTICS: dict[str, Callable[[Any], Any]] = {
    "min": np.min,
    "median": np.median,
    "mean": np.mean,
}


def compared_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of pairs that have been compared."""
    return [row for row in rows if "problem" not in row]


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """The rows of pairs that have been compared, those with the least SSIM first; NaN is least."""
    compared = compared_rows(rows)
    return sorted(compared, key=lambda row: (row["ssim"] == row["ssim"], row["ssim"]))


def statistics(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The least, the median, the mean and the worst of each metric over the compared pairs."""
    compared = compared_rows(rows)
    if not compared:
        return {}
    columns = {key: [row[key] for row in compared] for key in METRICS if key in compared[0]}
    found = {
        name: {key: float(of(column)) for key, column in columns.items()}
        for name, of in STATISTICS.items()
    }
    found["worst"] = {
        key: float((np.max if key in LOWER_IS_BETTER else np.min)(column))
        for key, column in columns.items()
    }
    return found


def largest_difference(rows: Sequence[Row]) -> float:
    """The largest difference between SSIM and scikit-image's."""
    return max((row["difference"] for row in compared_rows(rows)), default=0.0)
