"""The launches that compute one level of the pyramid, or all coarse levels at once."""

from __future__ import annotations

from ..request import Definition
from .launch import Allocation, Buffer, Launch
from .level import Level, load_kernels, map_shape, window_size
from .planning import Plan
from .programs import Cover, Machine
from .variant import auxiliary_arguments, in_kernel, parts_of, scratch_memory, variant_of


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
        *(x.address, 0, 1, cover.strips, cover.parts, cover.rows, c, height, width),
        *(*window.in_plane, constants),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        K=variant_of(level, plan.gradients, cover, settings, machine, MIXED=mixed),
        frees=(maps.name,),
    )


def _scratch(
    machine: Machine, level: Level, programs: int, plan: Plan, settings: Definition
) -> tuple[Buffer, list[Allocation]]:
    down, across = window_size(settings)
    size = programs * plan.scratch_rows(down) * plan.first.pitch(across)
    return scratch_memory(machine, level, size)
