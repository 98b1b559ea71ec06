"""The tiles that each kernel of the GPU path can have: the rows and columns of a program."""

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
# time that benchmarks/tuning has for the largest images, divided by the number of rows that
# `programs` counts. A program of one warp waits for no other warp. The strips of wider programs
# overlap less in `fused_kernel`; for 21 taps the wider programs were faster.
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
# On compute capability 7.5, two columns of windows over valid pixels need more registers than there
# are.
TILES["sm_75"] = {**TILES[None], 21: TILES[None][21]._replace(value=(Tile(32, 1, 1, 8),))}
LARGEST_WINDOW = max(TILES[None])
# The most resident warps of `coarse_levels_kernel`, which has further values in registers: those
# that differ between levels.
COARSE_WARPS = 8
