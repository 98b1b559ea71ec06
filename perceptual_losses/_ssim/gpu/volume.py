"""The programs and the launches of one level of volumes."""

from __future__ import annotations

from typing import NamedTuple

from ..request import Definition
from .launch import Allocation, Buffer, Launch
from .level import Level, load_kernels, map_shape, window_size
from .planning import plan_planes
from .programs import Cover, Machine, Workload, ceil_div
from .tiles import Tile
from .variant import auxiliary_arguments, in_kernel, parts_of, scratch_memory, variant_of

# The tile of `depth_kernel`: each thread goes through the planes at one position.
DEPTH_TILE = Tile(64, 1, 1, 8)
# The number of maps of a plane. They hold four moments, which at most four derivatives replace.
MAPS = 4
# The bytes of maps that fit into the second-level cache. As many volumes are computed together as
# have no more.
CACHED_BYTES = 2**25


class VolumePlan(NamedTuple):
    """The programs that compute a level of volumes.

    Attributes:
        gradients: the number of gradients.
        moments: programs of `plane_moments_kernel` for each plane.
        gradient: programs of `gradient_kernel` for each plane, or ``None``.
        tiles: the number of programs of `depth_kernel` for each volume.
        pitch: values from one row of a map to the next.
        size: values from one map of a plane to the next.
        together: the number of volumes that are computed together.
        at_once: whether all volumes are computed together.
    """

    gradients: int
    moments: Cover
    gradient: Cover | None
    tiles: int
    pitch: int
    size: int
    together: int
    at_once: bool

    @property
    def sums(self) -> int:
        """The number of sums of each volume."""
        return self.tiles

    @property
    def is_single(self) -> bool:
        """Whether one launch writes all sums."""
        return self.at_once


def plan_volume(work: Workload, settings: Definition, machine: Machine) -> VolumePlan:
    """Chooses the programs of each kernel."""
    n, c, depth, height, width = work.shapes[work.level]
    pitch, size = _map_size(work, map_shape(work.shapes[work.level], settings)[3:])
    cached = max(1, CACHED_BYTES // (4 * MAPS * depth * size))
    together = min(n * c, cached)
    moments, gradient = plan_planes(work, (together * depth, 1, height, width), machine)
    return VolumePlan(
        gradients=work.gradients,
        moments=moments,
        gradient=gradient if work.gradients else None,
        tiles=ceil_div(size, DEPTH_TILE.lanes),
        pitch=pitch,
        size=size,
        together=together,
        at_once=together == n * c,
    )


def _map_size(work: Workload, map_sides: tuple[int, ...]) -> tuple[int, int]:
    """The pitch and the size of a map with ``map_sides`` rows and columns, in values."""
    (rows, columns), (down, across), zeros = map_sides, work.window, 0
    if work.gradients and work.padding == "valid":
        # The map has fewer columns than the plane. Zeros stand before each row, and so behind the
        # row above it. A row of zeros comes last and stands for all rows outside the map.
        zeros = across - 1
        rows, columns = rows + (down > 1), columns + zeros
    pitch = 4 * ceil_div(columns, 4)
    return pitch, rows * pitch + 4 * ceil_div(zeros, 4)


def volume_launches(
    level: Level, plan: VolumePlan, settings: Definition, machine: Machine
) -> list[Launch]:
    """The launches that write a level's gradients and its programs' sums, or its map."""
    n, c, depth, _, _ = level.images[0].shape
    launches = []
    for first in range(0, n * c, plan.together):
        volumes = min(plan.together, n * c - first)
        launches.append(_moments(level, plan, first, volumes, settings, machine))
        launches.append(_depth(level, plan, first, volumes, settings, machine))
        if plan.gradient is not None:
            launches.append(_gradient(level, plan, first, volumes * depth, settings, machine))
    size = plan.together * depth * MAPS * plan.size
    if plan.gradient is not None and settings.padding == "valid":
        # The last threads of the last row read values beyond it.
        size += plan.gradient.strips * plan.gradient.tile.width + window_size(settings)[1] + 3
    new = [*level.allocations, Allocation(_maps(level).name, (size,))]
    frees = [*level.frees, _maps(level).name]
    if level.abs_difference_sums is not None:
        sums = plan.together * depth * plan.moments.sums
        new.append(Allocation(_PLANE_SUMS.name, (2 * sums,)))
        frees.append(_PLANE_SUMS.name)
    launches[0].allocations = (*new, *launches[0].allocations)
    launches[-1].frees += tuple(frees)
    return launches


_PLANE_SUMS = Buffer("plane_sums")


def _maps(level: Level) -> Buffer:
    return Buffer(f"maps{level.number}")


def _moments(
    level: Level,
    plan: VolumePlan,
    first: int,
    volumes: int,
    settings: Definition,
    machine: Machine,
) -> Launch:
    x, y, _, _ = map(in_kernel, level.arguments)
    _, c, depth, height, width = level.images[0].shape
    cover, (window, constants) = plan.moments, parts_of(level, settings)
    programs = volumes * depth * cover.sums
    down, across = window_size(settings)
    top = 0 if settings.padding == "valid" else -(down // 2)
    memory, allocated = scratch_memory(machine, level, programs * 4 * cover.pitch(across), first)
    summed = level.abs_difference_sums is not None
    kernels = load_kernels()
    return Launch(
        *(kernels.plane_moments_kernel, programs, cover.tile.program_warps),
        *(
            x,
            y,
            *auxiliary_arguments([level]),
            kernels.Maps(_maps(level), plan.pitch, plan.size, MAPS),
        ),
        *(memory, _PLANE_SUMS if summed else x.address),
        *(first, depth, cover.strips, cover.parts, cover.rows),
        *(top, top + cover.height, c, height, width, *window.in_plane, constants),
        K=variant_of(level, plan.gradients, cover, settings, machine, STORE_AFTER_READ=False),
        allocations=tuple(allocated),
        frees=tuple(allocation.name for allocation in allocated),
    )


def _depth(
    level: Level,
    plan: VolumePlan,
    first: int,
    volumes: int,
    settings: Definition,
    machine: Machine,
) -> Launch:
    x, y, _, _ = map(in_kernel, level.arguments)
    _, c, depth, height, width = level.images[0].shape
    window, constants = parts_of(level, settings)
    kernels, total = load_kernels(), level.total
    distance = level.abs_difference_sums
    cover = plan.moments._replace(tile=DEPTH_TILE)
    is_map = level.is_map and not plan.gradients
    return Launch(
        *(kernels.depth_kernel, volumes * plan.tiles, DEPTH_TILE.program_warps),
        *(
            x,
            y,
            *auxiliary_arguments([level]),
            kernels.Maps(_maps(level), plan.pitch, plan.size, MAPS),
        ),
        *(Buffer("map") if is_map else x.address, level.sums, distance or level.sums),
        *(x.address if distance is None else _PLANE_SUMS, total.result, total.arrived),
        *(level.pitch, first, plan.tiles, depth * plan.moments.sums),
        *(depth, c, height, width, *window.in_plane, window.through, constants),
        *(window.plane_total, level.weight_total, total.totals),
        K=variant_of(
            *(level, plan.gradients, cover, settings, machine),
            DOWN=len(settings.windows[0]),
            ACROSS=1,
            FAST_RECIPROCAL=machine.shared,
        ),
    )


def _gradient(
    level: Level,
    plan: VolumePlan,
    first: int,
    planes: int,
    settings: Definition,
    machine: Machine,
) -> Launch:
    x, y, x_gradient, y_gradient = map(in_kernel, level.arguments)
    n, c, depth, height, width = level.images[0].shape
    window, constants = parts_of(level, settings)
    cover = plan.gradient
    assert cover is not None  # Only plans with gradients come here.
    kernels, programs = load_kernels(), planes * cover.sums
    memory: Buffer = level.images[0].address
    allocated: list[Allocation] = []
    if settings.padding != "valid":
        pitch = cover.pitch(window_size(settings)[1])
        # Smaller numbers name the scratch memory of the launches for moments.
        memory, allocated = scratch_memory(
            machine, level, programs * 2 * MAPS * pitch, n * c + first
        )
    return Launch(
        *(kernels.gradient_kernel, programs, cover.tile.program_warps),
        *(x, y, *auxiliary_arguments([level]), x_gradient, y_gradient),
        kernels.Maps(_maps(level), plan.pitch, plan.size, MAPS),
        *(memory, first, depth, cover.strips, cover.parts, cover.rows, c, height, width),
        *(*window.in_plane, constants),
        *(constants.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        K=variant_of(
            *(level, plan.gradients, cover, settings, machine),
            MIXED=level.abs_difference_scale is not None,
        ),
        allocations=tuple(allocated),
        frees=tuple(allocation.name for allocation in allocated),
    )
