"""The programs of one launch: their tile, and the rows and strips that each computes.

A model of the time that a launch takes chooses among a kernel's tiles.
"""

from __future__ import annotations

from typing import NamedTuple

from .tiles import COARSE_WARPS, Tile

# The fewest rows of a program: each also computes some rows before its own.
MIN_ROWS = 8
# Rows that take as long as a further launch, which adds up each plane's tiles.
REDUCTION_TIME = 48


class Machine(NamedTuple):
    """The properties of a device that launches depend on."""

    architecture: str
    multiprocessors: int

    @property
    def shared(self) -> bool:
        """Whether the kernels use shared memory: they address it in PTX, which is NVIDIA's only."""
        return self.architecture.startswith("sm_")


class Workload(NamedTuple):
    """The part of a call that decides how one of its levels is computed.

    Attributes:
        shapes: shapes of the images of all levels.
        window: rows and columns of the window.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
        gradients: the number of gradients, 0 to 2.
        level: the number of the level.
        weighted: whether the map's values have weights.
        is_map: whether the result is the map.
        abs_difference: whether the mean of ``|x - y|`` is computed too.
        summed_later: whether another launch adds up the sums in any case, even if each plane has
            only one.
    """

    shapes: tuple[tuple[int, ...], ...]
    window: tuple[int, int]
    padding: str
    gradients: int
    level: int = 0
    weighted: bool = False
    is_map: bool = False
    abs_difference: bool = False
    summed_later: bool = True


class Cover(NamedTuple):
    """The programs that share the planes of a level.

    Attributes:
        tile: the tile of each.
        aligned_width: whether no thread's columns lie on both sides of the image's right edge, so
            that loads are wide. All coarser levels have the same value, and so one compilation.
        strips: strips of columns, as wide as a program.
        height: rows of a strip.
        rows: rows of a program.
        spans_strips: whether a program that ends a strip goes on in the next one, so that all have
            as many rows.
        time: time that the launch takes by the model, in its unit.
    """

    tile: Tile
    aligned_width: bool
    strips: int
    height: int
    rows: int
    spans_strips: bool
    time: float

    @property
    def parts(self) -> int:
        """The most programs in a strip."""
        more = self.spans_strips and self.height % self.rows > 0
        return ceil_div(self.height, self.rows) + more

    @property
    def sums(self) -> int:
        """The number of sums of each plane."""
        return self.strips * self.parts

    def lines(self, planes: int) -> int:
        """The number of rows of all strips."""
        return planes * self.strips * self.height

    def pitch(self, across: int) -> int:
        """Values from one row of scratch memory to the next, for windows of ``across`` columns.

        The windows of the last threads reach beyond the strip.
        """
        halo = max(1 << max(across - 2, 1).bit_length(), across + 2 * self.tile.columns)
        return self.tile.width + 4 * ceil_div(halo, 4)

    def programs(self, planes: int) -> int:
        """The number of programs."""
        return ceil_div(self.lines(planes), self.rows) if self.spans_strips else planes * self.sums


class Traversal(NamedTuple):
    """The way of a kernel's programs over a level.

    Attributes:
        warm_up_rows: rows that a program computes before its own, in each strip.
        halo: columns that a strip shares with the next one.
        extra_rows: rows beyond those of the images.
        extra_columns: columns beyond those of the images.
        spans_strips: whether programs go on in the next strip.
        one_launch_for_levels: whether all levels but the finest are one launch.
        summed_later: as for `Workload`.
    """

    warm_up_rows: int
    halo: int = 0
    extra_rows: int = 0
    extra_columns: int = 0
    spans_strips: bool = False
    one_launch_for_levels: bool = False
    summed_later: bool = True


def cover(tiles: tuple[Tile, ...], traversal: Traversal, work: Workload, machine: Machine) -> Cover:
    """Chooses the tile and the rows of a program that take the least time by the model."""
    shapes, level = work.shapes, work.level
    sizes = [
        (shape[2] + traversal.extra_rows, shape[3] + traversal.extra_columns) for shape in shapes
    ]
    alike = slice(1, None) if level else slice(1)
    if traversal.one_launch_for_levels:
        own = sizes[alike]
        launches = [own]
    else:
        own = [sizes[level]]
        launches = [[size] for size in sizes]
    is_coarse = traversal.one_launch_for_levels and level > 0
    model = _Model(traversal, shapes[0][0] * shapes[0][1], machine, is_coarse)
    # All levels of a kernel have one tile, because the kernel is compiled for each tile.
    possible = (tile for tile in tiles if tile.width > traversal.halo)
    tile = min(possible, key=lambda tile: model.cost(tile, launches))
    time, rows = model.fit(tile, own)
    height, width = sizes[level]
    return Cover(
        tile=tile,
        aligned_width=all(shape[3] % tile.columns == 0 for shape in shapes[alike]),
        strips=model.strips(tile, width),
        height=height,
        rows=min(rows, height) if traversal.spans_strips else rows,
        spans_strips=traversal.spans_strips,
        time=time,
    )


class _Model(NamedTuple):
    """A model of the time of launches. The unit is the time of a row in a kernel's first tile.

    Attributes:
        traversal: the way of the programs.
        planes: the number of planes.
        machine: the device. It runs as many programs at once as fit, and then the next ones.
        is_coarse: whether the launch is that of the coarse levels.
    """

    traversal: Traversal
    planes: int
    machine: Machine
    is_coarse: bool

    def strips(self, tile: Tile, width: int) -> int:
        """Strips of a plane."""
        return ceil_div(width, tile.width - self.traversal.halo)

    def cost(self, tile: Tile, launches: list[list[tuple[int, int]]]) -> tuple[float, int, int]:
        """The key that orders tiles: the time of all launches first, then the number of threads."""
        time = sum(self.fit(tile, sizes)[0] for sizes in launches)
        strips = sum(self.strips(tile, width) for sizes in launches for _, width in sizes)
        return time, tile.lanes * strips, -tile.lanes

    def fit(self, tile: Tile, sizes: list[tuple[int, int]]) -> tuple[float, int]:
        """The least time of a launch for levels of these sizes, and the rows of a program then."""
        strips = [(self.planes * self.strips(tile, width), height) for height, width in sizes]
        tallest = max(height for height, _ in sizes)
        if self.traversal.spans_strips:
            at_once, _ = self._throughput(tile)
            lines = sum(count * height for count, height in strips)
            least = ceil_div(lines, at_once * tallest)
            shares = [ceil_div(lines, waves * at_once) for waves in range(least, least + 4)]
        else:
            bands = range(1, ceil_div(tallest, MIN_ROWS) + 1)
            shares = [ceil_div(tallest, count) for count in bands]
        possible = {tallest, *(max(rows, MIN_ROWS) for rows in shares)}
        return min((self._time(tile, strips, rows), rows) for rows in possible if rows <= tallest)

    def _throughput(self, tile: Tile) -> tuple[int, float]:
        """The number of programs that run at once, and the time of a row of theirs."""
        warps = tile.resident_warps
        if self.is_coarse:
            warps = min(warps, COARSE_WARPS)
        at_once = self.machine.multiprocessors * max(1, warps // tile.program_warps)
        return at_once, tile.row_time * warps / tile.resident_warps

    def _time(self, tile: Tile, strips: list[tuple[int, int]], rows: int) -> float:
        """The time of a launch, for strips by number and height and the rows of a program."""
        programs, longest = 0, 0.0
        for count, height in strips:
            own, begun = min(rows, height), 1.0
            if self.traversal.spans_strips:
                programs += ceil_div(count * height, own)
                # A program that goes on in the next strip computes warm-up rows there again. A
                # share of own / height of the programs does.
                begun += own / height if height % own else 0
            else:
                programs += count * ceil_div(height, rows)
            longest = max(longest, own + begun * self.traversal.warm_up_rows)
        at_once, row_time = self._throughput(tile)
        several = programs > len(strips) * self.planes
        reduction = REDUCTION_TIME * (several and not self.traversal.summed_later)
        return ceil_div(programs, at_once) * longest * row_time + reduction


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)
