"""The rows and columns that each program of the GPU path computes.

Each kernel has a few tiles, and a model of the time that a launch takes chooses among them.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """The shape of a program: its threads, and the columns and rows that they compute.

    Attributes:
        lanes: threads of a program.
        columns: neighbouring columns of a thread, 1 or 2, or 4 where it writes no map. The pixels
            that their windows share are loaded once.
        rows_per_iteration: rows of the image in one iteration of the loop. More rows move fewer
            sums from register to register, and take longer to compile.
        resident_warps: warps whose registers fit on a multiprocessor at once.
        row_time: time of a row when so many warps are resident, relative to that of the kernel's
            first tile.
        store_after_read: whether an iteration first reads the rows that scratch memory holds, and
            then stores its own pixels. The faster order depends on how the compiler arranges it.
    """

    lanes: int
    columns: int
    rows_per_iteration: int
    resident_warps: int
    row_time: float = 1.0
    store_after_read: bool = False

    @property
    def width(self) -> int:
        """Columns of a program."""
        return self.lanes * self.columns

    @property
    def program_warps(self) -> int:
        """Warps of a program."""
        return max(1, self.lanes // 32)


class KernelTiles(NamedTuple):
    """The tiles that each kernel can have, for windows of some sizes.

    Attributes:
        plain_value: tiles of `value_kernel` for the unweighted mean over windows inside the image,
            without a gradient or |x - y|.
        fused: tiles of `fused_kernel`; if there are none, `value_kernel` and `gradient_kernel`
            share the work.
        value: tiles of `value_kernel` for all other results. All have equally many columns.
        gradient: tiles of `gradient_kernel`, for volumes and where ``fused`` is empty.
    """

    plain_value: tuple[Tile, ...]
    fused: tuple[Tile, ...]
    value: tuple[Tile, ...]
    gradient: tuple[Tile, ...]


# The tiles by architecture, and by the largest window that they serve. The time of a row is the
# time that benchmarks/tuning has for the largest images, divided by the rows that `_cover` counts.
# A program of one warp waits for no other warp. The strips of wider programs overlap less in
# `fused_kernel`; for 21 taps the wider programs were faster.
TILES: dict[str | None, dict[int, KernelTiles]] = {
    None: {
        11: KernelTiles(
            plain_value=(
                Tile(32, 4, 1, 8, store_after_read=True),
                Tile(32, 2, 1, 12, 0.87),
            ),
            fused=(
                Tile(32, 2, 1, 8),
                Tile(64, 2, 1, 8, 0.93, store_after_read=True),
                Tile(128, 2, 1, 8, 0.98, store_after_read=True),
            ),
            value=(Tile(32, 2, 1, 10),),
            gradient=(Tile(32, 2, 1, 8),),
        ),
        21: KernelTiles(
            plain_value=(
                Tile(64, 2, 1, 8, store_after_read=True),
                Tile(32, 1, 1, 12, 0.96, store_after_read=True),
            ),
            fused=(Tile(64, 1, 1, 8), Tile(128, 1, 1, 8, 1.02)),
            value=(Tile(32, 2, 1, 8),),
            gradient=(Tile(32, 2, 1, 8),),
        ),
        33: KernelTiles(
            plain_value=(Tile(32, 1, 1, 8, store_after_read=True),),
            fused=(),
            value=(Tile(32, 1, 1, 8),),
            gradient=(Tile(32, 1, 1, 8),),
        ),
    }
}
LARGEST_WINDOW = max(TILES[None])
# The most resident warps of `coarse_levels_kernel`, which has further values in registers: those
# that differ between levels.
COARSE_WARPS = 8
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
        cover = self.fused or self.value
        assert cover is not None  # `plan_level` gives each level one of the two.
        return cover

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


def plan_level(work: Workload, machine: Machine) -> Plan:
    """Chooses the kernels of a level, and the programs of each."""
    sizes = TILES.get(machine.architecture, TILES[None])
    tiles = sizes[min(size for size in sizes if size >= max(work.window))]
    if not work.gradients:
        return _plan_value(tiles, work, machine)
    if tiles.fused:
        return _plan_fused(tiles, work, machine)
    return _plan_maps(tiles, work, machine)


def _plan_value(tiles: KernelTiles, work: Workload, machine: Machine) -> Plan:
    plain = work.padding == "valid" and not (work.weighted or work.abs_difference or work.is_map)
    possible = tiles.plain_value if plain else tiles.value
    return Plan(0, value=_cover(possible, _map_traversal(possible, work), work, machine))


def _map_traversal(tiles: tuple[Tile, ...], work: Workload) -> Traversal:
    """The way of programs that compute rows of the map."""
    down, across = (size - 1 for size in work.window)
    radius = across // 2
    valid = work.padding == "valid"
    # The first windows of a padded map begin before the image and have their centre in it. The
    # kernel begins there with all columns of a thread.
    columns = tiles[0].columns
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


def _plan_fused(tiles: KernelTiles, work: Workload, machine: Machine) -> Plan:
    down, across = (size - 1 for size in work.window)
    traversal = Traversal(
        # A row before the first row of the map takes half the time of the others.
        warm_up_rows=down + down // 2,
        halo=across,
        one_launch_for_levels=True,
        summed_later=work.summed_later,
    )
    cover = _cover(tiles.fused, traversal, work, machine)
    if work.padding != "valid":
        cover = cover._replace(tile=cover.tile._replace(store_after_read=False))
    return Plan(work.gradients, fused=cover)


def _plan_maps(tiles: KernelTiles, work: Workload, machine: Machine) -> Plan:
    traversal = _extended_traversal(tiles.value, work)
    value = _cover(tiles.value, traversal, work, machine)
    gradient = _cover(tiles.gradient, Traversal(warm_up_rows=work.window[0] - 1), work, machine)
    # The last threads of a row write and read values beyond it.
    across = work.window[1] - 1
    written = value.strips * value.tile.width
    read = gradient.strips * gradient.tile.width + across + 4
    pitch = 16 * ceil_div(max(written, read), 16)
    return Plan(work.gradients, value=value, gradient=gradient, pitch=pitch)


def _extended_traversal(tiles: tuple[Tile, ...], work: Workload) -> Traversal:
    """The way of programs that compute all positions whose windows hold a pixel."""
    down, across = (size - 1 for size in work.window)
    columns = tiles[0].columns
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
    sizes = TILES.get(machine.architecture, TILES[None])
    tiles = sizes[min(size for size in sizes if size >= max(work.window))]
    work = work._replace(shapes=(shape,), level=0)
    possible = tiles.value
    if max(work.window) > 21:
        # The compiler gives programs of one warp fewer registers than these windows take.
        possible = tuple(tile._replace(lanes=2 * tile.lanes) for tile in possible)
    if work.gradients and work.padding == "symmetric":
        moments = _extended_traversal(possible, work)
    else:
        moments = _map_traversal(possible, work)
    moments = moments._replace(spans_strips=False, one_launch_for_levels=False)
    gradient = Traversal(warm_up_rows=work.window[0] - 1)
    return (
        _cover(possible, moments, work, machine),
        _cover(tiles.gradient, gradient, work, machine),
    )


def _cover(
    tiles: tuple[Tile, ...], traversal: Traversal, work: Workload, machine: Machine
) -> Cover:
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
