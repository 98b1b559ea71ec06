"""The launches of a call on a GPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..backend import Auxiliary, Layout, gradient_memory
from ..pyramid import halved_shape
from ..request import Definition, Request, num_levels, plane_gradient
from .combine import combine_launch
from .launch import Allocation, Buffer, Counter, Image, Launch, strides_in_rows
from .level import Level, Total, beside, load_kernels, map_shape, no_total, window_size
from .level_launches import coarse_levels_launch, level_launches
from .planning import Plan, plan_level
from .programs import Machine, Workload, ceil_div
from .volume import VolumePlan, plan_volume, volume_launches

# Rows and columns of a program that halves: from each halving of its rows comes a level.
HALVED_ROWS, HALVED_COLUMNS = 16, 128
# Tiles that a warp sums at once.
TILES = 32


def forward_launches(
    machine: Machine,
    device: torch.device,
    x: Layout,
    y: Layout,
    auxiliary: Auxiliary,
    request: Request,
) -> list[Launch]:
    """The launches of a forward pass.

    Its inputs are "x", "y" and the `auxiliary_names`. Its outputs are "means" or, of combined
    levels, "value" with "derivatives", and the gradients "of_x0", "of_x1", ..., "of_y0", ...
    """
    images = [[Image(Buffer(name), *a[1:]) for name, a in (("x", x), ("y", y))]]
    launches = []
    while len(images) < num_levels(request):
        valid = beside(len(images) - 1, auxiliary).valid
        halving, halves = _halving(
            images[-1], valid, len(images), num_levels(request) - len(images)
        )
        launches.append(halving)
        images += halves
    shapes = tuple(a.shape for a, _ in images)
    weighted = bool(auxiliary.weights)
    plans = _plan_levels(machine, shapes, weighted, request)
    sums = _Sums.of(plans, shapes, weighted, request)
    levels = [_level(j, images, (x, y), auxiliary, request, sums) for j in range(len(plans))]
    # The coarsest is first, for the halves to be gone where the gradients are large.
    definition = request.definition
    coarse = [plan for plan in plans[1:] if isinstance(plan, Plan) and plan.is_single]
    if coarse:
        launches.append(coarse_levels_launch(levels[1:], coarse, definition, machine))
        levels, plans = levels[:1], plans[:1]
    for level, plan in zip(reversed(levels), reversed(plans), strict=True):
        launches += launches_of_level(level, plan, definition, machine)
    if sums.in_kernel:
        launches[-1].frees += sums.memory.name, "arrived"
    elif not sums.are_means:
        launches.append(sums.reduce_launch())
    if _is_combined(request):
        launches.append(combine_launch(sums.shape, request))
    return launches


def plan_of_level(work: Workload, definition: Definition, machine: Machine) -> Plan | VolumePlan:
    """Chooses the programs of a level of images or volumes."""
    if len(definition.windows) == 3:
        return plan_volume(work, definition, machine)
    return plan_level(work, machine)


def launches_of_level(
    level: Level, plan: Plan | VolumePlan, definition: Definition, machine: Machine
) -> list[Launch]:
    """The launches that write a level's gradients and its programs' sums, or its map."""
    if isinstance(plan, VolumePlan):
        return volume_launches(level, plan, definition, machine)
    return level_launches(level, plan, definition, machine)


def auxiliary_names(auxiliary: Auxiliary) -> list[str]:
    """The names of all auxiliary tensors, field by field."""
    return [
        f"{field}{j}"
        for field, tensors in zip(auxiliary._fields, auxiliary, strict=True)
        for j in range(len(tensors))
    ]


def _is_combined(request: Request) -> bool:
    """Whether the means of several levels are multiplied."""
    return bool(request.exponents) and request.reduction != "levels"


def _plan_levels(
    machine: Machine, shapes: tuple[tuple[int, ...], ...], weighted: bool, request: Request
) -> list[Plan | VolumePlan]:
    per_level = _is_combined(request) or request.reduction == "levels"
    window = window_size(request.definition)
    padding = request.definition.padding
    work = Workload(shapes, window, padding, request.gradients, weighted=weighted)
    plans: list[Plan | VolumePlan] = []
    for j in range(num_levels(request)):
        # One launch adds up the sums of all levels, or none does.
        later = not per_level and (request.reduction != "none" or request.mix is not None)
        later = later or any(plan.sums > 1 for plan in plans[:1])
        abs_difference = request.mix is not None and j == 0
        work = work._replace(level=j, abs_difference=abs_difference, summed_later=later)
        plans.append(plan_of_level(work, request.definition, machine))
    return plans


class _Sums(NamedTuple):
    """The sums that programs write, and the means that become of them.

    Attributes:
        planes: the number of planes.
        pixels: pixels of a plane.
        counts: sums of each plane, at each level and then of |x - y|.
        weight_totals: the sum of the weights of a plane, for the same.
        reduction: the reduction of the planes' means, ``"none"`` for means of each level.
        mix: the weights of a mix of one level, or ``None``.
        shape: the shape of the means that are not reduced.
        has_distance: whether the last counts are of |x - y|.
        is_single: whether one kernel computes all there is.
    """

    planes: int
    pixels: float
    counts: list[int]
    weight_totals: list[float]
    reduction: str
    mix: tuple[float, float] | None
    shape: tuple[int, ...]
    has_distance: bool
    is_single: bool

    @classmethod
    def of(
        cls,
        plans: list[Plan | VolumePlan],
        shapes: tuple[tuple[int, ...], ...],
        weighted: bool,
        request: Request,
    ) -> _Sums:
        """The sums of all levels."""
        n, c, *sides = shapes[0]
        distance = request.mix is not None
        per_level = _is_combined(request) or request.reduction == "levels"
        sizes = [map_shape(shape, request.definition)[2:] for shape in shapes]
        totals = [1.0 if weighted else float(math.prod(size)) for size in sizes]
        pixels = float(math.prod(sides))
        counts = [plan.sums for plan in plans] + [plans[0].sums] * distance
        return cls(
            planes=n * c,
            pixels=pixels,
            counts=counts,
            weight_totals=totals + [pixels] * distance,
            reduction="none" if per_level else request.reduction,
            mix=None if per_level else request.mix,
            shape=(len(counts), n, c) if per_level else (n, c),
            has_distance=distance,
            is_single=len(plans) == 1 and plans[0].is_single,
        )

    @property
    def are_means(self) -> bool:
        """Whether tiles are whole planes, so that their programs write the planes' means."""
        return max(self.counts) == 1 and self.reduction == "none" and self.mix is None

    @property
    def in_kernel(self) -> bool:
        """Whether the launch that has all sums adds them up too."""
        return self.reduction != "none" and self.is_single

    @property
    def means(self) -> Allocation:
        """The memory of the result."""
        return Allocation("means", self.shape if self.reduction == "none" else ())

    @property
    def allocations(self) -> tuple[Allocation | Counter, ...]:
        """The memory of the sums, and of the result if the launch that has all adds them up."""
        if self.in_kernel:
            return self.memory, self.means, Counter("arrived")
        return (self.memory,)

    @property
    def memory(self) -> Allocation:
        """The memory of the sums."""
        if self.are_means:
            return self.means
        return Allocation("sums", (len(self.counts) * self.planes * self.pitch,))

    @property
    def pitch(self) -> int:
        """Values from the first sum of a plane to that of the next: each sum has its roundings."""
        return 1 if self.are_means else 2 * max(self.counts)

    @property
    def total(self) -> Total:
        """The result that the last program makes of all sums, or a total that nobody reads."""
        if not self.in_kernel:
            return no_total(self.memory.name)
        # The mean of the planes' means is that of the tiles: all planes weigh the same.
        count, weight_total = float(self.planes * self.counts[0]), self.weight_totals[0]
        planes, mix = self.planes, self.mix or (1.0, 0.0)
        values = load_kernels().Totals(count, planes * weight_total, planes * self.pixels, *mix)
        return Total(True, self.reduction == "loss", values, Buffer("means"), Buffer("arrived"))

    def reduce_launch(self) -> Launch:
        """The launch that adds up each plane's sums, or those of all planes."""
        mixed, most = self.mix is not None, max(self.counts)
        counts, weight_totals = self.counts, self.weight_totals
        programs, warps = (1 if mixed else len(counts)) * self.planes, 1
        if self.reduction != "none":
            programs, warps = 1, 4
            counts = [self.planes * most] * len(counts)
            weight_totals = [self.planes * weight_total for weight_total in weight_totals]
        return Launch(
            *(load_kernels().reduce_tiles_kernel, programs, warps),
            *(Buffer(self.memory.name), Buffer("means")),
            # Integers in a tuple are cases for the compiler, whatever a kernel asks for.
            *(tuple(map(float, counts)), tuple(weight_totals), self.planes, self.pitch),
            *(self.mix or (1.0, 0.0)),
            LANES=warps * TILES,
            ABS_DIFFERENCE=self.has_distance,
            LOSS=self.reduction == "loss" or mixed,
            MIXED=mixed,
            allocations=(self.means,),
            frees=(self.memory.name,),
        )


def _level(
    j: int,
    images: list[list[Image]],
    layouts: tuple[Layout, Layout],
    auxiliary: Auxiliary,
    request: Request,
    sums: _Sums,
) -> Level:
    """The computation of a level, and the places of all that it reads and writes."""
    coarsest = num_levels(request) - 1
    gradients = [
        gradient_of(f"of_{name}{j}", name, layout, images[j][0].shape if j else None)
        for name, layout in list(zip("xy", layouts, strict=True))[: request.gradients]
    ]
    # The finest of those that lie together is the last that is needed.
    name = images[j][0].address.name
    is_last = j > 0 and images[j - 1][0].address.name != name
    structural, l1 = sums.mix or (1.0, 0.0)
    offset, all_planes = sums.planes * sums.pitch, sums.planes * sums.pixels
    distance = request.mix is not None and j == 0
    return Level(
        number=j,
        images=images[j],
        beside=beside(j, auxiliary),
        gradients=[gradient for gradient, _ in gradients],
        sums=Buffer(sums.memory.name, j * offset),
        abs_difference_sums=Buffer(sums.memory.name, num_levels(request) * offset)
        if distance
        else None,
        pitch=sums.pitch,
        weight_total=sums.weight_totals[j] if sums.are_means else 0.0,
        gradient_scale=structural * plane_gradient(images[0][0].shape) / sums.weight_totals[j],
        abs_difference_scale=l1 / all_planes if sums.mix is not None else None,
        contrast_only=j < coarsest,
        total=sums.total,
        allocations=(*(new for _, new in gradients), *(sums.allocations if j == coarsest else ())),
        frees=(name,) if is_last else (),
    )


def gradient_of(
    name: str, image: str, layout: Layout, shape: tuple[int, ...] | None
) -> tuple[Image, Allocation]:
    """Where the gradient of an image of that layout goes, or of its halves of that shape."""
    new = Allocation(name, shape, image)
    if shape is not None:
        return Image(Buffer(name), shape, strides_in_rows(shape)), new
    like = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device="meta")
    return Image(Buffer(name), layout.shape, gradient_memory(like).stride()), new


def _halving(
    images: list[Image], valid: Image | None, first: int, levels: int
) -> tuple[Launch, list[list[Image]]]:
    """Both images at half the size, at half of that and so on, as far as one launch goes."""
    n, c, *depth, height, width = shape = images[0].shape
    levels = 1 if depth else min(levels, HALVED_ROWS.bit_length() - 1)
    at, halves = Buffer(f"halves{first}"), []
    for _ in range(levels):
        shape = tuple(halved_shape(shape))
        strides = strides_in_rows(shape)
        pair = [Image(at.shifted(i * shape[0] * strides[0]), shape, strides) for i in range(2)]
        halves.append(pair)
        at = at.shifted(2 * shape[0] * strides[0])
    strips, bands = ceil_div(width, HALVED_COLUMNS), ceil_div(height, HALVED_ROWS)
    depth = depth or [1]
    programs = n * c * ceil_div(depth[0], 2) * strips * bands
    x, y = images
    step = Launch(
        *(load_kernels().downsample_kernel, programs, 4, x.address, y.address),
        *(tuple(a.address for a, _ in halves), tuple(b.address for _, b in halves)),
        *(tuple(a.strides[-2] for a, _ in halves), x.strides, y.strides),
        (valid.address, valid.strides) if valid else (),
        *(strips, bands, *depth, c, height, width),
        ROWS=HALVED_ROWS,
        LANES=HALVED_COLUMNS,
        ALIGNED_WIDTH=width % load_kernels().COLUMNS_PER_ACCESS.value == 0,
        allocations=(Allocation(at.name, (at.offset,)),),
    )
    return step, halves
