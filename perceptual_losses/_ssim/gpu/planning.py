"""The choice of the kernels that compute a level, and of the programs of each."""

from __future__ import annotations

from typing import NamedTuple

from . import tiles
from .programs import Cover, Machine, Traversal, Workload, ceil_div, cover
from .tiles import KernelTiles, Tile


class Plan(NamedTuple):
    """The kernels that compute a level.

    Attributes:
        gradients: the number of gradients.
        fused: programs of `fused_kernel`, or ``None``.
        value: programs of `value_kernel`, or ``None``.
        gradient: programs of `gradient_kernel`, or ``None``.
        pitch: values of a row of the derivatives that ``value`` writes and ``gradient`` reads.
    """

    gradients: int
    fused: Cover | None = None
    value: Cover | None = None
    gradient: Cover | None = None
    pitch: int = 0

    @property
    def sums(self) -> int:
        """The number of sums of each plane."""
        return self.first.sums

    @property
    def first(self) -> Cover:
        """The programs that write the sums."""
        programs = self.fused or self.value
        assert programs is not None  # `plan_level` gives each level one of the two.
        return programs

    @property
    def is_single(self) -> bool:
        """Whether one kernel computes all of the level."""
        return self.gradient is None

    @property
    def maps(self) -> int:
        """The number of maps of derivatives."""
        return 4 if self.gradients == 2 else 3

    def scratch_rows(self, down: int) -> int:
        """Rows of scratch memory of a program, for windows of ``down`` rows."""
        return 2 * (down + 2 + self.maps) if self.fused else 4


def plan_level(work: Workload, machine: Machine) -> Plan:
    """Chooses the kernels of a level, and the programs of each."""
    of_kernels = _tiles_for(work.window, machine)
    if not work.gradients:
        return _plan_value(of_kernels, work, machine)
    if of_kernels.fused:
        return _plan_fused(of_kernels, work, machine)
    return _plan_maps(of_kernels, work, machine)


def _tiles_for(window: tuple[int, int], machine: Machine) -> KernelTiles:
    sizes = tiles.TILES.get(machine.architecture, tiles.TILES[None])
    return sizes[min(size for size in sizes if size >= max(window))]


def _plan_value(of_kernels: KernelTiles, work: Workload, machine: Machine) -> Plan:
    plain = work.padding == "valid" and not (work.weighted or work.abs_difference or work.is_map)
    possible = of_kernels.plain_value if plain else of_kernels.value
    return Plan(0, value=cover(possible, _map_traversal(possible, work), work, machine))


def _map_traversal(possible: tuple[Tile, ...], work: Workload) -> Traversal:
    """The way of programs that compute rows of the map, with any of these tiles."""
    down, across = (size - 1 for size in work.window)
    radius = across // 2
    valid = work.padding == "valid"
    # The first windows of a padded map begin before the image and have their centre in it. The
    # kernel begins there with all columns of a thread.
    columns = possible[0].columns
    before = 0 if valid else columns * ceil_div(radius, columns)
    extra_columns = -across if valid else before - radius
    if work.abs_difference:
        # |x - y| takes a position for each column of pixels, also for columns outside the map.
        extra_columns = before
    return Traversal(
        warm_up_rows=down,
        extra_rows=-down if valid and not work.abs_difference else 0,
        extra_columns=extra_columns,
        spans_strips=True,
        one_launch_for_levels=True,
        summed_later=work.summed_later,
    )


def _plan_fused(of_kernels: KernelTiles, work: Workload, machine: Machine) -> Plan:
    down, across = (size - 1 for size in work.window)
    traversal = Traversal(
        # A row before the first row of the map takes half the time of the others.
        warm_up_rows=down + down // 2,
        halo=across,
        one_launch_for_levels=True,
        summed_later=work.summed_later,
    )
    fused = cover(of_kernels.fused, traversal, work, machine)
    if work.padding != "valid":
        fused = fused._replace(tile=fused.tile._replace(store_after_read=False))
    return Plan(work.gradients, fused=fused)


def _plan_maps(of_kernels: KernelTiles, work: Workload, machine: Machine) -> Plan:
    traversal = _extended_traversal(of_kernels.value, work)
    value = cover(of_kernels.value, traversal, work, machine)
    gradient = cover(of_kernels.gradient, Traversal(warm_up_rows=work.window[0] - 1), work, machine)
    # The last threads of a row write and read values beyond it.
    across = work.window[1] - 1
    written = value.strips * value.tile.width
    read = gradient.strips * gradient.tile.width + across + 4
    pitch = 16 * ceil_div(max(written, read), 16)
    return Plan(work.gradients, value=value, gradient=gradient, pitch=pitch)


def _extended_traversal(possible: tuple[Tile, ...], work: Workload) -> Traversal:
    """The way of programs that compute all positions whose windows hold a pixel."""
    down, across = (size - 1 for size in work.window)
    columns = possible[0].columns
    return Traversal(
        warm_up_rows=down,
        extra_rows=down,
        extra_columns=columns * ceil_div(across, columns),
        spans_strips=True,
        summed_later=work.summed_later,
    )


def plan_planes(
    work: Workload, shape: tuple[int, int, int, int], machine: Machine
) -> tuple[Cover, Cover]:
    """Chooses the programs of a volume's planes: for their moments, and for their gradients."""
    of_kernels = _tiles_for(work.window, machine)
    work = work._replace(shapes=(shape,), level=0)
    possible, of_gradient = of_kernels.value, of_kernels.gradient
    if max(work.window) > 21:
        # The compiler gives programs of one warp fewer registers than these windows take, where
        # threads exchange rows.
        possible = _of_two_warps(possible)
        if work.padding != "valid":
            of_gradient = _of_two_warps(of_gradient)
    moments = _map_traversal(possible, work)
    moments = moments._replace(spans_strips=False, one_launch_for_levels=False)
    gradient = Traversal(warm_up_rows=work.window[0] - 1)
    return (
        cover(possible, moments, work, machine),
        cover(of_gradient, gradient, work, machine),
    )


def _of_two_warps(tiles: tuple[Tile, ...]) -> tuple[Tile, ...]:
    return tuple(tile._replace(lanes=2 * tile.lanes) for tile in tiles)
