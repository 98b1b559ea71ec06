"""The launches of a call on a GPU."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from ..backend import Layout, gradient_memory
from ..definition import FLOOR, Definition, Request, plane_gradient
from ..pyramid import halved_shape
from .launch import Allocation, Buffer, Counter, Image, Launch, strides_in_rows
from .tiles import Cover, Machine, Plan, Workload, ceil_div, plan_level

# Rows and columns of a program that adds up levels, and of one that halves: from each halving of
# its rows comes a level.
ROWS, COLUMNS = 4, 256
HALVED_ROWS, HALVED_COLUMNS = 16, 128
# Tiles that a warp sums at once.
TILES = 32
# Planes of a program that combines levels.
PLANES = 32
# The most programs for each multiprocessor that add up levels.
ACCUMULATING = 16


@functools.cache
def _kernels() -> Any:
    from . import kernels

    return kernels


def forward_launches(
    machine: Machine,
    device: torch.device,
    x: Layout,
    y: Layout,
    weights: tuple[Layout, ...],
    request: Request,
) -> list[Launch]:
    """The launches of a forward pass; its tensors are "means" or, of combined levels, "value" with
    "derivatives", and the gradients "of_x0", "of_x1", ..., "of_y0", ...
    """
    settings, levels, distance = request.definition, request.levels, request.mix is not None
    combined = bool(request.exponents) and request.reduction != "levels"
    per_level = combined or request.reduction == "levels"
    reduction = "none" if per_level else request.reduction
    mix = () if per_level or request.mix is None else request.mix
    planes = x.shape[0] * x.shape[1]
    images = [[Image(Buffer(name), *a[1:]) for name, a in (("x", x), ("y", y))]]
    steps = []
    while len(images) < levels:
        halving, halves = _halving(images[-1], len(images), levels - len(images))
        steps.append(halving)
        images += halves
    shapes = tuple(a.shape for a, _ in images)
    taps = len(settings.window)
    work = Workload(shapes, taps, settings.padding, request.gradients, weighted=bool(weights))
    plans: list[Plan] = []
    for j in range(levels):
        # A launch adds up all levels' sums, or none.
        later = reduction != "none" or bool(mix) or any(plan.first.sums > 1 for plan in plans[:1])
        work = work._replace(level=j, abs_difference=distance and j == 0, summed_later=later)
        plans.append(plan_level(work, machine))
    counts = [plan.first.sums for plan in plans] + [plans[0].first.sums] * distance
    lost = taps - 1 if settings.padding == "valid" else 0
    weight_totals = [1.0 if weights else float((h - lost) * (w - lost)) for *_, h, w in shapes]
    pixels = float(math.prod(x.shape[2:]))
    weight_totals += [pixels] * distance
    structural, l1 = mix or (1.0, 0.0)
    most = max(counts)
    shape = (len(counts), *x.shape[:2]) if per_level else tuple(x.shape[:2])
    means = Allocation("means", shape if reduction == "none" else ())
    # Where tiles are whole planes, their programs write the planes' means themselves.
    alone = most == 1 and reduction == "none" and not mix
    sums = means if alone else Allocation("sums", (2 * len(counts) * planes * most,))
    pitch = 1 if alone else 2 * most
    # Without a total, arguments that are no other case for the compiler.
    totals = _kernels().Totals(0.0, 0.0, 0.0, 0.0, 0.0)
    total = _Total(False, False, totals, Buffer(sums.name), Buffer(sums.name))
    if reduction != "none" and levels == 1 and plans[0].is_single:
        # The launch that has all sums adds them up too. The mean of the planes' means is that of
        # the tiles: all planes weigh the same.
        weight_total, count = planes * weight_totals[0], float(planes * most)
        totals = _kernels().Totals(count, weight_total, planes * pixels, structural, l1)
        total = _Total(True, reduction == "loss", totals, Buffer(means.name), Buffer("arrived"))

    of_levels = []
    for j in range(levels):
        gradients = [
            _gradient(f"of_{name}{j}", name, layout, shapes[j] if j else None)
            for name, layout in (("x", x), ("y", y))[: request.gradients]
        ]
        # The finest of those that lie together is the last that is needed.
        name = images[j][0].address.name
        of_level = _Level(
            j,
            images[j],
            Image(Buffer(f"weight{j}"), weights[j].shape, weights[j].strides) if weights else None,
            [gradient for gradient, _ in gradients],
            Buffer(sums.name, j * planes * pitch),
            Buffer(sums.name, levels * planes * pitch) if distance and j == 0 else None,
            pitch,
            weight_totals[j] if alone else 0.0,
            structural * plane_gradient(x.shape) / weight_totals[j],
            l1 / (planes * pixels) if mix else None,
            j < levels - 1,
            total,
            (*(new for _, new in gradients), *[sums] * (j == levels - 1)),
            (name,) if j > 0 and images[j - 1][0].address.name != name else (),
        )
        of_levels.append(of_level)
    # From the coarsest on, for the halves to be gone where the gradients are large.
    if levels > 1 and plans[0].is_single:
        steps.append(_coarse_levels(of_levels[1:], plans[1:], settings, machine))
        of_levels, plans = of_levels[:1], plans[:1]
    for of_level, plan in zip(reversed(of_levels), reversed(plans), strict=True):
        steps += _of_level(of_level, plan, settings, machine)
    if total.in_kernel:
        steps[-1].allocations += means, Counter(total.arrived.name)
        steps[-1].frees += sums.name, total.arrived.name
    elif not alone:
        programs, warps = (1 if mix else len(counts)) * planes, 1
        if reduction != "none":
            programs, warps = 1, 4
            counts = [planes * most] * len(counts)
            weight_totals = [planes * weight_total for weight_total in weight_totals]
        steps.append(
            Launch(
                *(_kernels().reduce_tiles_kernel, programs, warps),
                *(Buffer(sums.name), Buffer(means.name)),
                # Integers in a tuple are cases for the compiler, whatever a kernel asks for.
                *(tuple(map(float, counts)), tuple(weight_totals), planes, pitch, structural, l1),
                LANES=warps * TILES,
                ABS_DIFFERENCE=distance,
                LOSS=reduction == "loss" or bool(mix),
                MIXED=bool(mix),
                allocations=(means,),
                frees=(sums.name,),
            )
        )
    if combined:
        steps.append(combine_launch(shape, request))
    return steps


def _gradient(
    name: str, image: str, layout: Layout, shape: tuple[int, ...] | None
) -> tuple[Image, Allocation]:
    """Where the gradient of an image of that layout goes, or of its halves of that shape."""
    new = Allocation(name, shape, image)
    if shape is not None:
        return Image(Buffer(name), shape, strides_in_rows(shape)), new
    like = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device="meta")
    return Image(Buffer(name), layout.shape, gradient_memory(like).stride()), new


def _halving(images: list[Image], first: int, levels: int) -> tuple[Launch, list[list[Image]]]:
    """Both images at half the size, at half of that and so on, as far as one launch goes."""
    n, c, height, width = shape = images[0].shape
    levels = min(levels, HALVED_ROWS.bit_length() - 1)
    at, halves = Buffer(f"halves{first}"), []
    for _ in range(levels):
        shape = tuple(halved_shape(shape))
        strides = strides_in_rows(shape)
        pair = [Image(at.shifted(i * shape[0] * strides[0]), shape, strides) for i in range(2)]
        halves.append(pair)
        at = at.shifted(2 * shape[0] * strides[0])
    strips, bands = ceil_div(width, HALVED_COLUMNS), ceil_div(height, HALVED_ROWS)
    x, y = images
    step = Launch(
        *(_kernels().downsample_kernel, n * c * strips * bands, 4, x.address, y.address),
        *(tuple(a.address for a, _ in halves), tuple(b.address for _, b in halves)),
        *(tuple(a.strides[2] for a, _ in halves), x.strides, y.strides),
        *(strips, bands, c, height, width),
        ROWS=HALVED_ROWS,
        LANES=HALVED_COLUMNS,
        ALIGNED_WIDTH=width % _kernels().COLUMNS_PER_ACCESS.value == 0,
        allocations=(Allocation(at.name, (at.offset,)),),
    )
    return step, halves


class _Total(NamedTuple):
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


class _Level(NamedTuple):
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
    total: _Total
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
    level: _Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine, **others: Any
) -> Any:
    """The case that a kernel of a level is compiled for."""
    kernels = _kernels()
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    taps, tile = len(settings.window), cover.tile
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
        # With the derivatives of the largest windows `value_kernel` takes one register too many.
        FAST_RECIPROCAL=machine.shared and plan.is_single,
    )


def _parts(level: _Level, settings: Definition) -> tuple[Any, Any]:
    """The window and the constants of the formulas, as kernels take them."""
    kernels = _kernels()
    window, low, c1, c2, _ = settings
    constants = kernels.Constants(low, math.inf if level.contrast_only else c1, c2)
    return kernels.Window(*_passes(window)), constants


def _of_level(level: _Level, plan: Plan, settings: Definition, machine: Machine) -> list[Launch]:
    """The launches that write a level's gradients and its programs' sums."""
    if plan.fused is not None:
        return [_fused(level, plan, plan.fused, settings, machine)]
    launches = [_value(level, plan, plan.first, settings, machine)]
    if plan.gradient is not None:
        launches.append(_gradient_of_maps(level, plan, plan.gradient, settings, machine))
    launches[-1].frees += level.frees
    return launches


def _fused(
    level: _Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, weight, x_gradient, y_gradient = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = _parts(level, settings)
    programs, taps = cover.programs(n * c), len(settings.window)
    size = programs * plan.scratch_rows(taps) * cover.pitch(taps)
    memory, allocated = _scratch(machine, level, size)
    abs_difference_sums, total = level.abs_difference_sums or level.sums, level.total
    mixed = level.abs_difference_scale is not None
    return Launch(
        *(_kernels().fused_kernel, programs, cover.tile.program_warps),
        *(x, y, weight, x_gradient, y_gradient, memory),
        *(level.sums, abs_difference_sums, total.result, total.arrived, level.pitch),
        *(0, cover.strips, cover.parts, cover.rows, c, height, width, *window, constants),
        *(window.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        *(level.weight_total, total.totals),
        K=_variant(level, plan, cover, settings, machine, mixed=mixed),
        allocations=(*level.allocations, *allocated),
        frees=(*level.frees, *(allocation.name for allocation in allocated)),
    )


def _coarse_levels(
    levels: list[_Level], plans: list[Plan], settings: Definition, machine: Machine
) -> Launch:
    """The launch that does the same for all levels but the finest."""
    first = levels[0].images[0]
    covers = [plan.first for plan in plans]
    cover, taps = covers[0], len(settings.window)
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
        *(_kernels().coarse_levels_kernel, programs, cover.tile.program_warps),
        *(x, y, weight, x_gradient, y_gradient, memory, levels[0].sums),
        *(tuple(image.strides for image in images[2]), levels[0].pitch),
        *(n * c, rows, c, height, width, *window, constants),
        tuple(window.root**2 * level.gradient_scale for level in levels),
        tuple(level.weight_total for level in levels),
        K=_variant(levels[0], plans[0], cover, settings, machine, store_after_read=False),
        allocations=(*(a for level in reversed(levels) for a in level.allocations), *allocated),
        frees=(*(name for level in levels for name in level.frees), *(a.name for a in allocated)),
    )


def _value(
    level: _Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, weight, _, _ = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    planes, taps = n * c, len(settings.window)
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
        *(_kernels().value_kernel, programs, cover.tile.program_warps),
        *(x, y, weight, _kernels().Maps(maps, plan.pitch), memory),
        *(level.sums, abs_difference_sums, total.result, total.arrived, level.pitch),
        *(level.weight_total, 0, cover.strips, cover.parts, cover.rows, cover.lines(planes)),
        *(top, top + cover.height, c, height, width, *window, constants, total.totals),
        K=_variant(level, plan, cover, settings, machine),
        allocations=(*level.allocations, *allocated),
        frees=frees,
    )


def _gradient_of_maps(
    level: _Level, plan: Plan, cover: Cover, settings: Definition, machine: Machine
) -> Launch:
    x, y, _, x_gradient, y_gradient = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, constants = _parts(level, settings)
    mixed = level.abs_difference_scale is not None
    maps = Buffer(f"maps{level.number}")
    return Launch(
        *(_kernels().gradient_kernel, cover.programs(n * c), cover.tile.program_warps),
        *(x, y, x_gradient, y_gradient, _kernels().Maps(maps, plan.pitch)),
        *(cover.strips, cover.parts, cover.rows, c, height, width, *window, constants),
        *(window.root**2 * level.gradient_scale, level.abs_difference_scale or 0.0),
        K=_variant(level, plan, cover, settings, machine, mixed=mixed),
        frees=(maps.name,),
    )


def _in_kernel(image: Image) -> Any:
    return _kernels().Image(image.address, image.strides)


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


def _scratch(machine: Machine, level: _Level, size: int) -> tuple[Buffer, list[Allocation]]:
    """Scratch memory of so many values, where programs have no shared memory."""
    if machine.shared:
        # An address that is no other case for the compiler.
        return level.images[0].address, []
    name = f"scratch{level.number}"
    return Buffer(name), [Allocation(name, (size,))]


def backward_launch(
    machine: Machine,
    gradients: tuple[Layout, ...],
    grad: Layout,
    images: tuple[Layout, ...],
    *,
    combined: bool,
    premultiplied_by: float,
) -> Launch:
    """The launch that makes the finest of the levels' gradients the whole one, in place.

    Its tensors are "grad", "derivatives" if the levels are combined, "x" and "y" if the backward
    pass adds the gradient of L1, and "level0", "level1", ...
    """
    fine, *coarse = gradients
    n, c, height, width = fine.shape
    strips = ceil_div(width, COLUMNS)
    # No more programs than keep the multiprocessors busy: most have nothing to do.
    bands = min(
        ceil_div(height, ROWS), ceil_div(ACCUMULATING * machine.multiprocessors, n * c * strips)
    )
    rows = ROWS * ceil_div(ceil_div(height, ROWS), bands)
    bands = ceil_div(height, rows)
    x, y = (
        ((Buffer("x"), images[0].strides), (Buffer("y"), images[1].strides))
        if images
        else (
            (Buffer("level0"), fine.strides),
            (Buffer("level0"), fine.strides),
        )
    )
    return Launch(
        *(_kernels().accumulate_levels_kernel, n * c * strips * bands, 4, Buffer("level0")),
        tuple(Buffer(f"level{j}") for j in range(1, len(gradients))) or (Buffer("level0"),),
        *(tuple(level.strides[2] for level in coarse) or (0,), Buffer("grad")),
        *(Buffer("derivatives" if combined else "grad"), x[0], y[0]),
        *(fine.strides, (0, 0, 0, *grad.strides)[-3:], x[1], y[1]),
        *(strips, bands, rows, n * c, c, height, width, premultiplied_by),
        COARSE=len(coarse),
        PRODUCT=combined,
        ROWS=ROWS,
        LANES=COLUMNS,
        ALIGNED_WIDTH=width % _kernels().COLUMNS_PER_ACCESS.value == 0,
        ABS_DIFFERENCE=bool(images),
    )


def combine_launch(shape: tuple[int, ...], request: Request) -> Launch:
    """The launch that multiplies the powers of the levels' means, of this shape."""
    exponents, normalize, reduction = request.exponents, request.normalize, request.reduction
    mix = request.mix or ()
    kernels = _kernels()
    codes = {
        "floor": kernels.FLOOR,
        "relu": kernels.RELU,
        "simple": kernels.SIMPLE,
        None: kernels.PLAIN,
    }
    planes = shape[1] * shape[2]
    total = reduction != "none"
    programs, warps = (1, 8) if total else (ceil_div(planes, PLANES), 1)
    return Launch(
        *(
            kernels.combine_levels_kernel,
            programs,
            warps,
            Buffer("means"),
            Buffer("value"),
            Buffer("derivatives"),
        ),
        *(exponents, FLOOR, planes, *(mix or (1.0, 0.0))),
        NORMALIZE=codes[normalize].value,
        LANES=PLANES * warps,
        TOTAL=total,
        LOSS=reduction == "loss",
        MIXED=bool(mix),
        allocations=(
            Allocation("value", () if total else shape[1:]),
            Allocation("derivatives", shape),
        ),
    )
