"""The case that a level's kernels are compiled for, and the arguments that all of them take."""

from __future__ import annotations

import math
from typing import Any

from ..request import Definition
from .launch import Allocation, Buffer, Image
from .level import Level, load_kernels, window_size
from .programs import Cover, Machine
from .taps import Passes, passes_of


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
    """The image as the kernels read it."""
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
