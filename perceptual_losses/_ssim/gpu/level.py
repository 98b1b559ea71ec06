"""The launches that compute one level of the pyramid, or all coarse levels at once."""

from __future__ import annotations

import functools
import math
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
        loss: whether the result is 1 less the mean.
        totals: the kernels' ``totals``.
        result: the place of the result.
        arrived: the place of the integer that counts the programs.
    """

    in_kernel: bool
    loss: bool
    totals: Any
    result: Buffer
    arrived: Buffer


class Level(NamedTuple):
    """The computation of a level, and the places of all that it reads and writes.

    Attributes:
        number: number of the level.
        images: both images.
        weight: weights of the map's values, or ``None``.
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
    """

    number: int
    images: list[Image]
    weight: Image | None
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

    @property
    def arguments(self) -> tuple[Image, Image, Image, Image, Image]:
        """Both images, the weights and both gradients; where there are none, arguments that are no
        other case for the compiler.
        """
        x, y = self.images
        gradients = self.gradients or [x]
        return x, y, self.weight or x._replace(strides=(0,) * 4), gradients[0], gradients[-1]

    @property
    def dense(self) -> bool:
        """Whether neighbouring columns are one access, in the images and in the gradients."""
        return all(image.dense for image in (*self.images, *self.gradients))


def _variant(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine, **others: Any
) -> Any:
    """The case that a kernel of a level is compiled for."""
    kernels = load_kernels()
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    taps, tile = len(settings.windows[0]), cover.tile
    return kernels.Variant.of(
        LANES=tile.lanes,
        COLUMNS=tile.columns,
        ROWS_PER_ITERATION=tile.rows_per_iteration,
        STORE_AFTER_READ=others.get("store_after_read", tile.store_after_read),
        ALIGNED_WIDTH=cover.aligned_width,
        DENSE=level.dense,
        TAPS=taps,
        PITCH=cover.pitch(taps),
        PADDING=codes[settings.padding].value,
        GRADIENTS=plan.gradients,
        WEIGHTED=level.weight is not None,
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
    (window, *_), low, length, c1, c2, _, _ = settings
    across, down, root = _passes(window)
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
    x, y, weight, x_gradient, y_gradient = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = _parts(level, settings)
    programs, taps = cover.programs(n * c), len(settings.windows[0])
    size = programs * plan.scratch_rows(taps) * cover.pitch(taps)
    memory, allocated = _scratch(machine, level, size)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    mixed = level.abs_difference_scale is not None
    return Launch(
        *(load_kernels().fused_kernel, programs, cover.tile.program_warps),
        *(x, y, weight, x_gradient, y_gradient, memory),
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
    cover, taps = covers[0], len(settings.windows[0])
    n, c, height, width = first.shape
    window, constants = _parts(levels[-1], settings)
    images = list(zip(*(level.arguments for level in levels), strict=True))
    x, y, weight, x_gradient, y_gradient = (
        tuple(image.address for image in of_all) for of_all in images
    )
    programs = sum(cover.programs(n * c) for cover in covers)
    rows = max(cover.rows for cover in covers)
    size = programs * plans[0].scratch_rows(taps) * cover.pitch(taps)
    memory, allocated = _scratch(machine, levels[0], size)
    return Launch(
        *(load_kernels().coarse_levels_kernel, programs, cover.tile.program_warps),
        *(x, y, weight, x_gradient, y_gradient, memory, levels[0].sums),
        *(tuple(image.strides for image in images[2]), levels[0].pitch),
        *(n * c, rows, c, height, width, *window, constants),
        tuple(constants.root**2 * level.gradient_scale for level in levels),
        tuple(level.weight_total for level in levels),
        K=_variant(levels[0], plans[0], cover, settings, machine, store_after_read=False),
        allocations=(*(a for level in reversed(levels) for a in level.allocations), *allocated),
        frees=(*(name for level in levels for name in level.frees), *(a.name for a in allocated)),
    )


def _value(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, weight, _, _ = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    planes, taps = n * c, len(settings.windows[0])
    window, constants = _parts(level, settings)
    programs = cover.programs(planes)
    size = programs * plan.scratch_rows(taps) * cover.pitch(taps)
    memory, allocated = _scratch(machine, level, size)
    frees = tuple(allocation.name for allocation in allocated)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    top, maps = (0 if settings.padding == "valid" else -(taps // 2)), x.address
    if plan.gradients:
        top = 1 - taps
        maps = Buffer(f"maps{level.number}")
        allocated.append(Allocation(maps.name, (planes * plan.maps * cover.height * plan.pitch,)))
    return Launch(
        *(load_kernels().value_kernel, programs, cover.tile.program_warps),
        *(x, y, weight, load_kernels().Maps(maps, plan.pitch), memory),
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
    x, y, _, x_gradient, y_gradient = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = _parts(level, settings)
    mixed = level.abs_difference_scale is not None
    maps = Buffer(f"maps{level.number}")
    return Launch(
        *(load_kernels().gradient_kernel, cover.programs(n * c), cover.tile.program_warps),
        *(x, y, x_gradient, y_gradient, load_kernels().Maps(maps, plan.pitch)),
        *(cover.strips, cover.parts, cover.rows, c, height, width, *window, constants),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        K=_variant(level, plan, cover, settings, machine, mixed=mixed),
        frees=(maps.name,),
    )


def _in_kernel(image: Image) -> Any:
    return load_kernels().Image(image.address, image.strides)


def _passes(window: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """The first half of the taps for the pass along rows and for that along columns, each in units
    of the tap with which a kernel then need not multiply, and the root of both units' product.

    In float32 and yet with a sum of 1: a variance is a difference of two terms, which grow with the
    window's sum and with its square.
    """
    half = window[: len(window) // 2 + 1]
    centre, edge = half[-1], half[0]
    # A one that is an integer is compiled in.
    across = [tap / centre for tap in half[:-1]]
    down, root = (*map(_rounded, across), 1), _rounded(centre)
    if edge >= 2**-40 * centre:
        down = (1, *(_rounded(tap / edge) for tap in half[1:]))
        root = _rounded(math.sqrt(centre * edge))
    lost = 0.5 * (1 / (root * root * (2 * sum(down[:-1]) + down[-1])) - 1) - sum(across)
    # Large taps first, whose roundings smaller ones make up for, unless they are much smaller.
    for k in reversed(range(len(across))):
        exact = across[k] + (lost if abs(lost) < 2**-10 * across[k] else 0)
        across[k] = _rounded(exact)
        lost = exact - across[k]
    return (*across, 1), down, root


def _rounded(value: float) -> float:
    return float(np.float32(value))


def _scratch(machine: Machine, level: Level, size: int) -> tuple[Buffer, list[Allocation]]:
    """Scratch memory of so many values, where programs have no shared memory."""
    if machine.shared:
        # An address that is no other case for the compiler.
        return level.images[0].address, []
    name = f"scratch{level.number}"
    return Buffer(name), [Allocation(name, (size,))]
