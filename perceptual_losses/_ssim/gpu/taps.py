"""The taps of a window, as the kernels of the GPU path take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Passes(NamedTuple):
    """Half of the taps of each pass, the first half, scaled so that one is 1 and needs no product.

    Attributes:
        across: taps of the sums along rows.
        down: taps of the sums along columns.
        root: the root of the product of all units. Pixels times it have moments in the right scale.
        through: taps of the sums along depth; images have none.
        plane_total: the sum of the taps of a volume's plane, all of them, in their units.
    """

    across: tuple[float, ...]
    down: tuple[float, ...]
    root: float
    through: tuple[float, ...] = ()
    plane_total: float = 0.0

    @property
    def in_plane(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The taps of the two passes within a plane."""
        return self.across, self.down


def passes_of(windows: Sequence[tuple[float, ...]]) -> Passes:
    """The taps of a window by axis, rounded to float32 so that their sum stays 1.

    A variance is a difference that magnifies an error of the sum.
    """
    *volume, down, across = windows
    if not volume:
        return _in_plane(down, across)
    (through,) = volume
    if len(down) == len(across) == 1:
        # No other pass has taps that make up for the roundings of these.
        alone = _in_plane(through, across)
        return Passes((1,), (1,), alone.root, alone.down, 1.0)
    scaled, unit = _in_units(through)
    taps = (*map(_rounded, scaled),)
    total = 2 * sum(taps) - taps[-1]
    plane = _in_plane(down, across, unit, total)
    ones = [1 if tap == 1 else tap for tap in taps]
    return plane._replace(through=(*ones,), plane_total=1 / (plane.root**2 * total))


def _in_units(window: tuple[float, ...]) -> tuple[list[float], float]:
    """The first half of the taps in units of one of them, and the unit."""
    taps = window[: len(window) // 2 + 1]
    # A one that is an integer is compiled in, at the edge unless other taps would be too large.
    unit = taps[0] if taps[0] >= 2**-40 * taps[-1] else taps[-1]
    return [tap / unit for tap in taps], unit


def _in_plane(
    down: tuple[float, ...],
    across: tuple[float, ...],
    other_unit: float = 1.0,
    other_total: float = 1.0,
) -> Passes:
    """The taps of two passes, beside a third one with its unit and the sum of its taps."""
    (*of_rows, centre_across), (*of_columns, centre_down) = (
        window[: len(window) // 2 + 1] for window in (across, down)
    )
    taps_across = [tap / centre_across for tap in of_rows]
    edge = of_columns[0] if of_columns else 0.0
    # A one that is an integer is compiled in, at the edge unless other taps would be too large.
    first = edge >= 2**-40 * centre_down
    unit = edge if first else centre_down
    taps_down = [tap / unit for tap in (*of_columns[first:], *[centre_down] * first)]
    root = _rounded(math.sqrt(centre_across * unit * other_unit))
    total = 1 / (root * root * other_total)
    if taps_across:
        taps_down = [*map(_rounded, taps_down)]
        sums = 2 * sum(taps_down) + (2 * first - taps_down[-1] if first else 1)
        taps_across = _compensated(taps_across, 0.5 * (total / sums - 1))
    elif first:
        # The centre counts once, as half of it does twice.
        halves = [*taps_down[:-1], 0.5 * taps_down[-1]]
        *edges, half = _compensated(halves, 0.5 * total - 1)
        taps_down = [*edges, 2 * half]
    else:
        taps_down = _compensated(taps_down, 0.5 * (total - 1))
    taps_down.insert(0 if first else len(taps_down), 1)
    return Passes((*taps_across, 1), tuple(taps_down), root)


def _compensated(taps: list[float], total: float) -> list[float]:
    """The taps in float32, with this sum."""
    lost = total - sum(taps)
    rounded = list(taps)
    # Large taps first, whose roundings smaller ones make up for, unless they are much smaller.
    for k in reversed(range(len(taps))):
        exact = taps[k] + (lost if abs(lost) < 2**-10 * taps[k] else 0)
        rounded[k] = _rounded(exact)
        lost = exact - rounded[k]
    return rounded


def _rounded(value: float) -> float:
    return float(np.float32(value))
