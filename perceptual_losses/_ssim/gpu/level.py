"""The launches that compute one level of the pyramid, or all coarse levels at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..definition import Definition
from .launch import Allocation, Buffer, Image, Launch
from .tiles import Cover, Machine, Plan


@functools.cache
def load_kernels() -> Any:
    """The kernels; importing them imports Triton, which not every system has."""
    from . import kernels

    return kernels


class Total(NamedTuple):
    """The result that the last program of a launch makes of the sums of all.

    Attributes:
        in_kernel: whether it adds them up; if not, the rest has no meaning.
        loss: whether the result is 1 minus the mean.
        totals: the kernels' ``totals``.
        result: the place of the result.
        arrived: the place of the integer that counts the programs.
    """

    in_kernel: bool
    loss: bool
    totals: Any
    result: Buffer
    arrived: Buffer


def no_total(name: str) -> Total:
    """A total that nobody reads: arguments that are no other case for the compiler."""
    return Total(False, False, load_kernels().Totals(*[0.0] * 5), Buffer(name), Buffer(name))


class Beside(NamedTuple):
    """The places of the tensors beside a level's images, or ``None``.

    Attributes:
        ranges: ranges of the images.
        weight: weights of the map's values.
        valid: pixels that exist.
        coverage: reciprocals of the windows' weights over valid pixels.
    """

    ranges: Buffer | None
    weight: Image | None
    valid: Image | None
    coverage: Image | None

    @property
    def images(self) -> tuple[Image | None, ...]:
        """All but the ranges."""
        return self.weight, self.valid, self.coverage


class Level(NamedTuple):
    """The computation of a level, and the places of all that it reads and writes.

    Attributes:
        number: number of the level.
        images: both images.
        beside: the tensors beside the images.
        gradients: as many gradients as are requested.
        sums: the place of the first program's sum.
        abs_difference_sums: the place of the first sum of |x - y|, or ``None``.
        pitch: values from a plane's first sum to the next one's.
        weight_total: sum of a plane's weights, or 0 where sums are added up later.
        gradient_scale: share of each of the map's values in the result.
        abs_difference_scale: share of each pixel's |x - y| in the result of a mix, or ``None``.
        contrast_only: whether the map is the contrast-structure factor: the luminance of the
            formulas is 1 with an infinite ``c1``.
        total: the result that its launch makes of all sums.
        allocations: memory that its first launch allocates beside its own.
        frees: names of tensors that nothing needs after it.
        is_map: whether the result is the map, "map", and not sums.
    """

    number: int
    images: list[Image]
    beside: Beside
    gradients: list[Image]
    sums: Buffer
    abs_difference_sums: Buffer | None
    pitch: int
    weight_total: float
    gradient_scale: float
    abs_difference_scale: float | None
    contrast_only: bool
    total: Total
    allocations: tuple[Allocation, ...]
    frees: tuple[str, ...]
    is_map: bool = False

    @property
    def arguments(self) -> tuple[Image, Image, Image, Image]:
        """Both images and both gradients; where there are none, arguments that are no other case
        for the compiler.
        """
        x, y = self.images
        gradients = self.gradients or [x]
        return x, y, gradients[0], gradients[-1]

    @property
    def dense(self) -> bool:
        """Whether neighbouring columns are one access, in the images and in the gradients."""
        return all(image.dense for image in (*self.images, *self.gradients))


def window_size(settings: Definition) -> tuple[int, int]:
    """The rows and the columns of a window."""
    down, across = map(len, settings.windows)
    return down, across


def map_shape(shape: Sequence[int], settings: Definition) -> tuple[int, ...]:
    """The shape of the map of images of this shape."""
    *planes, height, width = shape
    down, across = window_size(settings) if settings.padding == "valid" else (1, 1)
    return (*planes, height - down + 1, width - across + 1)


def _variant(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine, **others: Any
) -> Any:
    """The case that a kernel of a level is compiled for."""
    kernels = load_kernels()
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    (down, across), tile = window_size(settings), cover.tile
    return kernels.Variant.of(
        LANES=tile.lanes,
        COLUMNS=tile.columns,
        ROWS_PER_ITERATION=tile.rows_per_iteration,
        STORE_AFTER_READ=others.get("store_after_read", tile.store_after_read),
        ALIGNED_WIDTH=cover.aligned_width,
        DENSE=level.dense,
        DOWN=down,
        ACROSS=across,
        PITCH=cover.pitch(across),
        PADDING=codes[settings.padding].value,
        GRADIENTS=plan.gradients,
        MAP=level.is_map,
        WEIGHTED=level.beside.weight is not None,
        PARTIAL=level.beside.valid is not None,
        RANGED=level.beside.ranges is not None,
        ABS_DIFFERENCE=level.abs_difference_sums is not None,
        MIXED=others.get("mixed", False),
        SHARED=machine.shared,
        SUM_IN_KERNEL=level.total.in_kernel,
        LOSS=level.total.loss,
        # The derivatives of the largest windows leave `value_kernel` one register too few.
        FAST_RECIPROCAL=machine.shared and plan.is_single,
    )


def _parts(level: Level, settings: Definition) -> tuple[Any, Any]:
    """The window and the constants of the formulas, as kernels take them."""
    kernels = load_kernels()
    windows, low, length, c1, c2, _, _ = settings
    across, down, root = _passes(*windows)
    c1 = math.inf if level.contrast_only else c1
    return kernels.Window(across, down), kernels.Constants(root, low, length, c1, c2)


def level_launches(
    level: Level, plan: Plan, settings: Definition, machine: Machine
) -> list[Launch]:
    """The launches that write a level's gradients and its programs' sums."""
    if plan.fused is not None:
        return [_fused(level, plan, plan.fused, settings, machine)]
    launches = [_value(level, plan, plan.first, settings, machine)]
    if plan.gradient is not None:
        launches.append(_gradient_of_maps(level, plan, plan.gradient, settings, machine))
    launches[-1].frees += level.frees
    return launches


def _fused(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, x_gradient, y_gradient = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = _parts(level, settings)
    programs = cover.programs(n * c)
    memory, allocated = _scratch(machine, level, programs, plan, settings)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    mixed = level.abs_difference_scale is not None
    return Launch(
        *(load_kernels().fused_kernel, programs, cover.tile.program_warps),
        *(x, y, *_auxiliary([level]), x_gradient, y_gradient, memory),
        *(level.sums, abs_difference_sums, total.result, total.arrived, level.pitch),
        *(0, cover.strips, cover.parts, cover.rows, c, height, width, *window, constants),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        *(level.weight_total, total.totals),
        K=_variant(level, plan, cover, settings, machine, mixed=mixed),
        allocations=(*level.allocations, *allocated),
        frees=(*level.frees, *(allocation.name for allocation in allocated)),
    )


def coarse_levels_launch(
    levels: list[Level], plans: list[Plan], settings: Definition, machine: Machine
) -> Launch:
    """The launch that does the same for all levels but the finest."""
    first = levels[0].images[0]
    covers = [plan.first for plan in plans]
    cover = covers[0]
    n, c, height, width = first.shape
    window, constants = _parts(levels[-1], settings)
    x, y, x_gradient, y_gradient = (
        tuple(image.address for image in of_all)
        for of_all in zip(*(level.arguments for level in levels), strict=True)
    )
    programs = sum(cover.programs(n * c) for cover in covers)
    rows = max(cover.rows for cover in covers)
    memory, allocated = _scratch(machine, levels[0], programs, plans[0], settings)
    return Launch(
        *(load_kernels().coarse_levels_kernel, programs, cover.tile.program_warps),
        *(x, y, *_auxiliary(levels), x_gradient, y_gradient, memory),
        *(levels[0].sums, levels[0].pitch, n * c, rows, c, height, width, *window, constants),
        tuple(constants.root**2 * level.gradient_scale for level in levels),
        tuple(level.weight_total for level in levels),
        K=_variant(levels[0], plans[0], cover, settings, machine, store_after_read=False),
        allocations=(*(a for level in reversed(levels) for a in level.allocations), *allocated),
        frees=(*(name for level in levels for name in level.frees), *(a.name for a in allocated)),
    )


def _value(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, _, _ = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    planes, (down, _) = n * c, window_size(settings)
    window, constants = _parts(level, settings)
    programs = cover.programs(planes)
    memory, allocated = _scratch(machine, level, programs, plan, settings)
    frees = tuple(allocation.name for allocation in allocated)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    top, maps = (0 if settings.padding == "valid" else -(down // 2)), x.address
    pitch = plan.pitch
    if plan.gradients:
        top = 1 - down
        maps = Buffer(f"maps{level.number}")
        allocated.append(Allocation(maps.name, (planes * plan.maps * cover.height * pitch,)))
    elif level.is_map:
        maps, pitch = Buffer("map"), map_shape(level.images[0].shape, settings)[3]
    return Launch(
        *(load_kernels().value_kernel, programs, cover.tile.program_warps),
        *(x, y, *_auxiliary([level]), load_kernels().Maps(maps, pitch), memory),
        *(level.sums, abs_difference_sums, total.result, total.arrived, level.pitch),
        *(level.weight_total, 0, cover.strips, cover.parts, cover.rows, cover.lines(planes)),
        *(top, top + cover.height, c, height, width, *window, constants, total.totals),
        K=_variant(level, plan, cover, settings, machine),
        allocations=(*level.allocations, *allocated),
        frees=frees,
    )


def _gradient_of_maps(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, x_gradient, y_gradient = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = _parts(level, settings)
    mixed = level.abs_difference_scale is not None
    maps = Buffer(f"maps{level.number}")
    return Launch(
        *(load_kernels().gradient_kernel, cover.programs(n * c), cover.tile.program_warps),
        *(x, y, *_auxiliary([level]), x_gradient, y_gradient),
        load_kernels().Maps(maps, plan.pitch),
        *(cover.strips, cover.parts, cover.rows, c, height, width, *window, constants),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        K=_variant(level, plan, cover, settings, machine, mixed=mixed),
        frees=(maps.name,),
    )


def _auxiliary(levels: list[Level]) -> tuple[tuple[Buffer, ...], tuple[tuple[int, ...], ...]]:
    """The addresses and the strides of the tensors beside the images, as kernels take them: the
    ranges, and then each level's others. Where there are none at all, the tuples are empty.
    """
    besides = [level.beside for level in levels]
    if not any(part is not None for beside in besides for part in beside):
        return (), ()
    # An address that nobody reads.
    unused = levels[0].images[0]._replace(strides=(0,) * 4)
    images = [image or unused for beside in besides for image in beside.images]
    ranges = besides[0].ranges or unused.address
    return (ranges, *(a.address for a in images)), tuple(a.strides for a in images)


def _in_kernel(image: Image) -> Any:
    return load_kernels().Image(image.address, image.strides)


def _passes(
    down: tuple[float, ...], across: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Half of the taps for each pass, scaled so that one tap is 1 and needs no product.

    The third result undoes the scale: it is the root of both units' product. The taps are rounded
    to float32 so that the window's sum stays 1, because a variance is a difference that magnifies
    an error of the sum.
    """
    (*of_rows, centre_across), (*of_columns, centre_down) = (
        window[: len(window) // 2 + 1] for window in (across, down)
    )
    taps_across = [tap / centre_across for tap in of_rows]
    edge = of_columns[0] if of_columns else 0.0
    # A one that is an integer is compiled in, at the edge unless other taps would be too large.
    first = edge >= 2**-40 * centre_down
    unit = edge if first else centre_down
    taps_down = [tap / unit for tap in (*of_columns[first:], *[centre_down] * first)]
    root = _rounded(math.sqrt(centre_across * unit))
    total = 1 / (root * root)
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
    return (*taps_across, 1), tuple(taps_down), root


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


def _scratch(
    machine: Machine, level: Level, programs: int, plan: Plan, settings: Definition
) -> tuple[Buffer, list[Allocation]]:
    """Scratch memory of so many programs, where they have no shared memory."""
    if machine.shared:
        # An address that is no other case for the compiler.
        return level.images[0].address, []
    name, (down, across) = f"scratch{level.number}", window_size(settings)
    size = programs * plan.scratch_rows(down) * plan.first.pitch(across)
    return Buffer(name), [Allocation(name, (size,))]
