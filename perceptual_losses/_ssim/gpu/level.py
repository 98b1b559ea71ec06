"""The launches that compute one level of the pyramid, or all coarse levels at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import Auxiliary, Layout
from ..definition import Definition
from .launch import Allocation, Buffer, Counter, Image, Launch
from .planning import Plan
from .programs import Cover, Machine
from .taps import Passes, passes_of


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
    allocations: tuple[Allocation | Counter, ...]
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
    *_, down, across = map(len, settings.windows)
    return down, across


def map_shape(shape: Sequence[int], settings: Definition) -> tuple[int, ...]:
    """The shape of the map of images of this shape."""
    sides = shape[2:]
    if settings.padding == "valid":
        windows = settings.windows
        sides = [side - len(window) + 1 for side, window in zip(sides, windows, strict=True)]
    return (*shape[:2], *sides)


def variant_of(
    level: Level,
    gradients: int,
    cover: Cover,
    settings: Definition,
    machine: Machine,
    **changes: Any,
) -> Any:
    """The case that a kernel of a level is compiled for, with other ``changes`` of it."""
    kernels = load_kernels()
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    (down, across), tile = window_size(settings), cover.tile
    values = {
        "LANES": tile.lanes,
        "COLUMNS": tile.columns,
        "ROWS_PER_ITERATION": tile.rows_per_iteration,
        "STORE_AFTER_READ": tile.store_after_read,
        "ALIGNED_WIDTH": cover.aligned_width,
        "DENSE": level.dense,
        "DOWN": down,
        "ACROSS": across,
        "PITCH": cover.pitch(across),
        "PADDING": codes[settings.padding].value,
        "GRADIENTS": gradients,
        "MAP": level.is_map,
        "WEIGHTED": level.beside.weight is not None,
        "PARTIAL": level.beside.valid is not None,
        "RANGED": level.beside.ranges is not None,
        "ABS_DIFFERENCE": level.abs_difference_sums is not None,
        "MIXED": False,
        "SHARED": machine.shared,
        "SUM_IN_KERNEL": level.total.in_kernel,
        "LOSS": level.total.loss,
        "FAST_RECIPROCAL": machine.shared,
    }
    return kernels.Variant.of(**{**values, **changes})


def parts_of(level: Level, settings: Definition) -> tuple[Passes, Any]:
    """The taps of the window, and the constants of the formulas as kernels take them."""
    windows, low, length, c1, c2, _, _ = settings
    window = passes_of(windows)
    c1 = math.inf if level.contrast_only else c1
    return window, load_kernels().Constants(window.root, low, length, c1, c2)


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
    x, y, x_gradient, y_gradient = map(in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = parts_of(level, settings)
    programs = cover.programs(n * c)
    memory, allocated = _scratch(machine, level, programs, plan, settings)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    mixed = level.abs_difference_scale is not None
    return Launch(
        *(load_kernels().fused_kernel, programs, cover.tile.program_warps),
        *(x, y, *auxiliary_arguments([level]), x_gradient, y_gradient, memory),
        *(level.sums, abs_difference_sums, total.result, total.arrived, level.pitch),
        *(0, cover.strips, cover.parts, cover.rows, c, height, width, *window.in_plane, constants),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        *(level.weight_total, total.totals),
        K=variant_of(level, plan.gradients, cover, settings, machine, MIXED=mixed),
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
    window, constants = parts_of(levels[-1], settings)
    x, y, x_gradient, y_gradient = (
        tuple(image.address for image in of_all)
        for of_all in zip(*(level.arguments for level in levels), strict=True)
    )
    programs = sum(cover.programs(n * c) for cover in covers)
    rows = max(cover.rows for cover in covers)
    memory, allocated = _scratch(machine, levels[0], programs, plans[0], settings)
    return Launch(
        *(load_kernels().coarse_levels_kernel, programs, cover.tile.program_warps),
        *(x, y, *auxiliary_arguments(levels), x_gradient, y_gradient, memory),
        *(
            levels[0].sums,
            levels[0].pitch,
            n * c,
            rows,
            c,
            height,
            width,
            *window.in_plane,
            constants,
        ),
        tuple(constants.root**2 * level.gradient_scale for level in levels),
        tuple(level.weight_total for level in levels),
        K=variant_of(
            *(levels[0], plans[0].gradients, cover, settings, machine), STORE_AFTER_READ=False
        ),
        allocations=(*(a for level in reversed(levels) for a in level.allocations), *allocated),
        frees=(*(name for level in levels for name in level.frees), *(a.name for a in allocated)),
    )


def _value(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, _, _ = map(in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    planes, (down, _) = n * c, window_size(settings)
    window, constants = parts_of(level, settings)
    programs = cover.programs(planes)
    memory, allocated = _scratch(machine, level, programs, plan, settings)
    frees = tuple(allocation.name for allocation in allocated)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    top, maps = (0 if settings.padding == "valid" else -(down // 2)), x.address
    *_, map_height, pitch = map_shape(level.images[0].shape, settings)
    size, count = map_height * pitch, 1
    if plan.gradients:
        top, size, count = 1 - down, cover.height * plan.pitch, plan.maps
        pitch, maps = plan.pitch, Buffer(f"maps{level.number}")
        allocated.append(Allocation(maps.name, (planes * count * size,)))
    elif level.is_map:
        maps = Buffer("map")
    return Launch(
        *(load_kernels().value_kernel, programs, cover.tile.program_warps),
        *(
            x,
            y,
            *auxiliary_arguments([level]),
            load_kernels().Maps(maps, pitch, size, count),
            memory,
        ),
        *(level.sums, abs_difference_sums, total.result, total.arrived, level.pitch),
        *(level.weight_total, 0, cover.strips, cover.parts, cover.rows, cover.lines(planes)),
        *(top, top + cover.height, c, height, width, *window.in_plane, constants, total.totals),
        K=variant_of(
            *(level, plan.gradients, cover, settings, machine),
            # The derivatives of the largest windows leave `value_kernel` one register too few.
            FAST_RECIPROCAL=machine.shared and plan.is_single,
        ),
        allocations=(*level.allocations, *allocated),
        frees=frees,
    )


def _gradient_of_maps(
    level: Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, x_gradient, y_gradient = map(in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = parts_of(level, settings)
    mixed = level.abs_difference_scale is not None
    maps = Buffer(f"maps{level.number}")
    size = (height + window_size(settings)[0] - 1) * plan.pitch
    return Launch(
        *(load_kernels().gradient_kernel, cover.programs(n * c), cover.tile.program_warps),
        *(x, y, *auxiliary_arguments([level]), x_gradient, y_gradient),
        load_kernels().Maps(maps, plan.pitch, size, plan.maps),
        *(
            0,
            1,
            1,
            cover.strips,
            cover.parts,
            cover.rows,
            c,
            height,
            width,
            *window.in_plane,
            constants,
        ),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        K=variant_of(level, plan.gradients, cover, settings, machine, MIXED=mixed),
        frees=(maps.name,),
    )


def auxiliary_arguments(
    levels: list[Level],
) -> tuple[tuple[Buffer, ...], tuple[tuple[int, ...], ...]]:
    """The addresses and the strides of the tensors beside the images, as kernels take them: the
    ranges, and then each level's others. Where there are none at all, the tuples are empty.
    """
    besides = [level.beside for level in levels]
    if not any(part is not None for beside in besides for part in beside):
        return (), ()
    # An address that nobody reads.
    first = levels[0].images[0]
    unused = first._replace(strides=(0,) * len(first.strides))
    images = [image or unused for beside in besides for image in beside.images]
    ranges = besides[0].ranges or unused.address
    return (ranges, *(a.address for a in images)), tuple(a.strides for a in images)


def in_kernel(image: Image) -> Any:
    return load_kernels().Image(image.address, image.strides)


def scratch_memory(
    machine: Machine, level: Level, size: int, launch: int = 0
) -> tuple[Buffer, list[Allocation]]:
    """Scratch memory of so many values, where programs have no shared memory: that of one of a
    level's launches.
    """
    if machine.shared:
        # An address that is no other case for the compiler.
        return level.images[0].address, []
    name = f"scratch{level.number}_{launch}"
    return Buffer(name), [Allocation(name, (size,))]


def _scratch(
    machine: Machine, level: Level, programs: int, plan: Plan, settings: Definition
) -> tuple[Buffer, list[Allocation]]:
    down, across = window_size(settings)
    size = programs * plan.scratch_rows(down) * plan.first.pitch(across)
    return scratch_memory(machine, level, size)


def beside(j: int, auxiliary: Auxiliary) -> Beside:
    """The places of the tensors beside a level's images."""
    weight, _, valid, coverage = (
        _of_all_channels(f"{field}{j}", layouts[j]) if field != "ranges" and layouts else None
        for field, layouts in zip(auxiliary._fields, auxiliary, strict=True)
    )
    return Beside(Buffer("ranges0") if auxiliary.ranges else None, weight, valid, coverage)


def _of_all_channels(name: str, layout: Layout) -> Image:
    """The place of a tensor whose channel is that of all of the images'."""
    n, _, *others = layout.strides
    return Image(Buffer(name), layout.shape, (n, 0, *others))
