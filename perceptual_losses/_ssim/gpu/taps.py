"""The taps of a window, as the kernels of the GPU path take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Passes(NamedTuple):
    """The first half of the taps of each pass, scaled so that one of them is 1.

    The tap of 1 needs no multiplication.

    Attributes:
        across: taps of the sums along rows.
        down: taps of the sums along columns.
        root: the square root of the product of all passes' units. Pixels are multiplied by it, so
            that the sums of their squares have the right scale.
        through: taps of the sums along depth, empty for images.
        plane_total: the sum of all taps within a volume's plane, in units of the two passes.
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
    """The taps of each pass, rounded to float32 so that all taps of the window still sum to 1.

    A variance is the difference of two moments, which magnifies an error of that sum.

    Args:
        windows: all taps along each axis, columns last.
    """
    *volume, down, across = windows
    if not volume:
        return _in_plane(down, across)
    (through,) = volume
    if len(down) == len(across) == 1:
        # Each other pass has one tap, which can't make up for the rounding of these.
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
    # The integer 1 is compiled in. It is the edge tap, unless the others would be too large then.
    unit = taps[0] if taps[0] >= 2**-40 * taps[-1] else taps[-1]
    return [tap / unit for tap in taps], unit


def _in_plane(
    down: tuple[float, ...],
    across: tuple[float, ...],
    other_unit: float = 1.0,
    other_total: float = 1.0,
) -> Passes:
    """The taps of the two passes within a plane.

    Args:
        down: all taps along columns.
        across: all taps along rows.
        other_unit: the unit of the pass along depth, if there is one.
        other_total: the sum of that pass's taps in its unit.
    """
    (*of_rows, centre_across), (*of_columns, centre_down) = (
        window[: len(window) // 2 + 1] for window in (across, down)
    )
    taps_across = [tap / centre_across for tap in of_rows]
    edge = of_columns[0] if of_columns else 0.0
    # The same choice of a unit as in `_in_units`.
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
        # The centre tap counts once and the others twice: half of it takes its place here.
        halves = [*taps_down[:-1], 0.5 * taps_down[-1]]
        *edges, half = _compensated(halves, 0.5 * total - 1)
        taps_down = [*edges, 2 * half]
    else:
        taps_down = _compensated(taps_down, 0.5 * (total - 1))
    taps_down.insert(0 if first else len(taps_down), 1)
    return Passes((*taps_across, 1), tuple(taps_down), root)


def _compensated(taps: list[float], total: float) -> list[float]:
    """The taps rounded to float32 so that they sum to ``total``."""
    lost = total - sum(taps)
    rounded = list(taps)
    # Large taps come first. A smaller tap makes up for their rounding, unless that would change
    # it much.
    for k in reversed(range(len(taps))):
        exact = taps[k] + (lost if abs(lost) < 2**-10 * taps[k] else 0)
        rounded[k] = _rounded(exact)
        lost = exact - rounded[k]
    return rounded


def _rounded(value: float) -> float:
    return float(np.float32(value))
