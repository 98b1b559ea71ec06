"""How the programs of the GPU path share a level: the tiles of each kernel, and which rows and
columns each program computes.
"""

from __future__ import annotations

from typing import NamedTuple

X, Y = 1, 2


class Tile(NamedTuple):
    """The pixels of a program.

    Attributes:
        lanes: threads of a program.
        columns: neighbouring columns of a thread, 1 or 2 (or 4 without a map to write): what they
            share is loaded once.
        turn: rows of the image in one turn of the loop. More of them move fewer sums from register
            to register, and take longer to compile.
        warps: whose registers fit on a multiprocessor at once.
        row: time of a row of so many warps, relative to that of the kernel's first tile.
        late: whether a turn without padding begins with what other rows have in scratch memory, and
            keeps its own pixels after that. What is faster depends on how the compiler orders it.
    """

    lanes: int
    columns: int
    turn: int
    warps: int
    row: float = 1.0
    late: bool = False


class Launches(NamedTuple):
    """The tiles that each kernel can have. Without one for `march`, `derive` and `gather` give the
    gradient.

    Attributes:
        value: of `derive` for plain means of windows inside the image, without a gradient.
        march: of `march`.
        derive: of `derive` for all else, with as many columns each.
        gather: of `gather`, where there is no `march`.
    """

    value: tuple[Tile, ...]
    march: tuple[Tile, ...]
    derive: tuple[Tile, ...]
    gather: tuple[Tile, ...]


# For each architecture, and up to each window size. A row's time is what benchmarks/tuning has at
# the largest size, over the rows that `_cover` counts. Programs of one warp wait for no other; the
# strips of wider ones overlap less in `march`, and for 21 taps they were faster all the same.
LAUNCHES: dict[str | None, dict[int, Launches]] = {
    None: {
        11: Launches(
            value=(Tile(32, 4, 1, 8, late=True), Tile(32, 2, 1, 12, 0.87)),
            march=(
                Tile(32, 2, 1, 8),
                Tile(64, 2, 1, 8, 0.93, late=True),
                Tile(128, 2, 1, 8, 0.98, late=True),
            ),
            derive=(Tile(32, 2, 1, 10),),
            gather=(),
        ),
        21: Launches(
            value=(Tile(64, 2, 1, 8, late=True), Tile(32, 1, 1, 12, 0.96, late=True)),
            march=(Tile(64, 1, 1, 8), Tile(128, 1, 1, 8, 1.02)),
            derive=(Tile(32, 2, 1, 8),),
            gather=(),
        ),
        33: Launches(
            value=(Tile(32, 1, 1, 8, late=True),),
            march=(),
            derive=(Tile(32, 1, 1, 8),),
            gather=(Tile(32, 1, 1, 8),),
        ),
    }
}
LARGEST_WINDOW = max(LAUNCHES[None])
# Warps of all levels but the finest, at most: what differs between levels is in registers.
COARSER = 8
# Rows of a program, at least: each computes the rows before its own too.
SHORTEST = 8
# Rows that take as long as a launch more, which adds up each plane's tiles.
MEAN = 48
# Bytes of the derivatives between `derive` and `gather`: not much beyond a second-level cache.
WORKSPACE = 64 * 2**20


class Machine(NamedTuple):
    """What the launches depend on."""

    architecture: str
    multiprocessors: int

    @property
    def shared(self) -> bool:
        """Whether the kernels have a way to shared memory, which they address in PTX."""
        return self.architecture.startswith("sm_")


class Cover(NamedTuple):
    """How programs share some planes.

    Attributes:
        whole: whether no thread's columns lie on both sides of the image's right edge, which makes
            loads wide; the same for all coarser levels, which are then one compilation.
        lanes: threads of a program.
        columns: of each thread.
        turn: rows in a turn of the loop.
        late: as of a `Tile`.
        strips: of columns, as wide as a program.
        height: rows of a strip.
        rows: of a program.
        across: whether a program that ends a strip goes on in the next one, so that all have as
            many rows.
        time: that the launch takes, in rows.
    """

    whole: bool
    lanes: int
    columns: int
    turn: int
    late: bool
    strips: int
    height: int
    rows: int
    across: bool
    time: float

    @property
    def parts(self) -> int:
        """The most programs in a strip."""
        return ceil_div(self.height, self.rows) + (self.across and self.height % self.rows > 0)

    @property
    def sums(self) -> int:
        """Of each plane."""
        return self.strips * self.parts

    def lines(self, planes: int) -> int:
        """Rows of all strips."""
        return planes * self.strips * self.height

    @property
    def warps(self) -> int:
        """Of a program."""
        return _warps(self.lanes)

    def pitch(self, taps: int) -> int:
        """Of a row of scratch memory: the last threads' windows reach beyond the strip."""
        beside = max(1 << max(taps - 2, 1).bit_length(), taps + 2 * self.columns)
        return self.lanes * self.columns + 4 * ceil_div(beside, 4)

    def programs(self, planes: int) -> int:
        """How many there are."""
        return ceil_div(self.lines(planes), self.rows) if self.across else planes * self.sums


class Slab(NamedTuple):
    """Rows of the image whose derivatives are in memory at once."""

    top: int
    bottom: int
    derive: Cover
    gather: Cover


class Plan(NamedTuple):
    """How a level is computed.

    Attributes:
        want: which gradients; `X` or the sum for both, 0 for none.
        sums: of each plane.
        march: the tiles of the kernel that does all, or ``None``.
        slabs: what `derive` and `gather` do one after the other.
        planes: in a slab, at most.
        pitch: of the rows of derivatives.
    """

    want: int
    sums: int
    march: Cover | None
    slabs: tuple[Slab, ...]
    planes: int
    pitch: int

    @property
    def maps(self) -> int:
        """Maps of derivatives."""
        return 4 if self.want == X + Y else 3

    @property
    def alone(self) -> Cover | None:
        """The tiles of the one kernel that does all, if there is one: `derive` does for values."""
        return self.march or (None if self.want else self.slabs[0].derive)

    def kept_rows(self, taps: int) -> int:
        """Rows of scratch memory of a program."""
        return 2 * (taps + 2 + self.maps) if self.march else 4


def plan_level(
    shapes: tuple[tuple[int, ...], ...],
    level: int,
    taps: int,
    padding: str,
    want: int,
    weighted: bool,
    distance: bool,
    added: bool,
    machine: Machine,
) -> Plan:
    """How one level is computed.

    Args:
        shapes: of the images of all levels.
        level: which one.
        taps: of the window.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
        want: which gradients, 0 for none.
        weighted: whether the map's values have weights.
        distance: whether the mean of ``|x - y|`` is computed too.
        added: whether sums are added up by another launch, be they of whole planes or not.
        machine: where.
    """
    n, c, height, width = shapes[level]
    planes = n * c
    sizes = LAUNCHES.get(machine.architecture, LAUNCHES[None])
    launches = sizes[min(size for size in sizes if size >= taps)]
    reach, radius = taps - 1, taps // 2
    if not want:
        # Positions before the image have their centre in it.
        before = 0 if padding == "valid" else radius
        top, bottom = -before, height - reach + before
        # `derive` begins with columns of a whole thread.
        plain = padding == "valid" and not weighted and not distance
        columns = launches.derive[0].columns
        left = 0 if padding == "valid" else columns * ceil_div(radius, columns)
        beside = left - before - (reach if padding == "valid" else 0)
        if distance:
            # A position for each row and column of pixels, if beside the map.
            bottom, beside = height - before, left
        cover = _cover(
            launches.value if plain else launches.derive,
            *(machine, planes, bottom - top, shapes, level, reach, beside),
            across=True,
            together=True,
            added=added,
        )
        return Plan(want, cover.sums, None, (Slab(top, bottom, cover, cover),), planes, 0)
    if launches.march:
        # A turn of the rows before the first of the map takes half the time of the others.
        before = reach + reach // 2
        cover = _cover(
            *(launches.march, machine, planes, height, shapes, level, before),
            halo=reach,
            together=True,
            added=added,
        )
        if padding != "valid":
            cover = cover._replace(late=False)
        return Plan(want, cover.sums, cover, (), planes, 0)

    maps = 4 if want == X + Y else 3
    # Room for what the last threads of a row read and write beyond it, with most lanes.
    derived, gathered = (
        max(tile.lanes * tile.columns for tile in tiles)
        for tiles in (launches.derive, launches.gather)
    )
    pitch = max(
        derived * ceil_div(width + reach, derived), gathered * ceil_div(width, gathered) + taps + 3
    )
    pitch = 16 * ceil_div(pitch, 16)
    rows = min(max(WORKSPACE // (4 * maps * pitch) - reach, taps), height)
    at_once = min(max(WORKSPACE // (4 * maps * pitch * (rows + reach)), 1), planes)
    slabs = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        both = (shapes, level, reach)
        derive = _cover(
            *(launches.derive, machine, at_once, bottom - top + reach, *both, reach),
            across=True,
            added=added,
        )
        gather = _cover(launches.gather, machine, at_once, bottom - top, *both, added=True)
        slabs.append(Slab(top, bottom, derive, gather))
    sums = sum(slab.derive.sums for slab in slabs)
    return Plan(want, sums, None, tuple(slabs), at_once, pitch)


def _cover(
    tiles: tuple[Tile, ...],
    machine: Machine,
    planes: int,
    height: int,
    shapes: tuple[tuple[int, ...], ...],
    level: int,
    before: int,
    beside: int = 0,
    halo: int = 0,
    across: bool = False,
    together: bool = False,
    added: bool = False,
) -> Cover:
    """Programs that take the least time, in rows that one does.

    Args:
        tiles: what is possible.
        machine: where they run: so many programs at once, and the next when these are done.
        planes: of each image.
        height: rows of the level.
        shapes: of all levels.
        level: the number of the level.
        before: rows that a program computes beside its own, in each strip.
        beside: columns more than those of the images.
        halo: columns of a strip that are its neighbour's.
        across: whether programs go on in the next strip.
        together: whether all but the finest level are one launch.
        added: whether their sums are added up, be they of whole planes or not.
    """
    alike = shapes[1:] if level else shapes[:1]
    own = [(height, shapes[level][3] + beside)]
    launches = [[(shape[2], shape[3] + beside)] for shape in shapes]
    if together:
        beyond = height - shapes[level][2]
        own = [(shape[2] + beyond, shape[3] + beside) for shape in alike]
        launches = [own]

    def strips(tile: Tile, width: int) -> int:
        return ceil_div(width, tile.lanes * tile.columns - halo)

    def fit(tile: Tile, sizes: list[tuple[int, int]]) -> tuple[float, int]:
        """Time of a launch, and rows of a program."""
        height = max(height for height, _ in sizes)
        shares = [(planes * strips(tile, width), height) for height, width in sizes]
        warps = min(tile.warps, COARSER) if together and level else tile.warps
        row = tile.row * warps / tile.warps
        at_once = machine.multiprocessors * max(1, warps // _warps(tile.lanes))

        def time(rows: int) -> float:
            parts, longest = 0, 0.0
            for n, height in shares:
                here, begun = min(rows, height), 1.0
                if across:
                    parts += ceil_div(n * height, here)
                    # Most programs begin in one strip; what ends in the next begins there again.
                    begun += here / height if height % here else 0
                else:
                    parts += n * ceil_div(height, rows)
                longest = max(longest, here + begun * before)
            mean = 0 if added else MEAN * (parts > len(sizes) * planes)
            return ceil_div(parts, at_once) * longest * row + mean

        if across:
            lines = sum(n * height for n, height in shares)
            least = ceil_div(lines, at_once * height)
            even = [ceil_div(lines, waves * at_once) for waves in range(least, least + 4)]
        else:
            even = [ceil_div(height, bands) for bands in range(1, ceil_div(height, SHORTEST) + 1)]
        possible = {height, *(max(share, SHORTEST) for share in even)}
        return min((time(rows), rows) for rows in possible if rows <= height)

    def cost(tile: Tile) -> tuple[float, int, int]:
        """Of all launches, then their threads."""
        time = sum(fit(tile, sizes)[0] for sizes in launches)
        widths = [width for sizes in launches for _, width in sizes]
        return time, tile.lanes * sum(strips(tile, width) for width in widths), -tile.lanes

    # The same for all levels, because for another one the kernel is compiled again.
    tile = min((tile for tile in tiles if tile.lanes * tile.columns > halo), key=cost)
    time, rows = fit(tile, own)
    whole = all(shape[3] % tile.columns == 0 for shape in alike)
    count = strips(tile, shapes[level][3] + beside)
    rows = min(rows, height) if across else rows
    return Cover(whole, *tile[:3], tile.late, count, height, rows, across, time)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _warps(lanes: int) -> int:
    return max(1, lanes // 32)
