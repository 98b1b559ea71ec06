"""The GPU path: launches of the Triton kernels, for tensors read where and as they lie."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..definition import FLOOR, Result, Settings, X, Y, usual_scale
from ..pyramid import halved
from .launch import (
    At,
    Counter,
    Image,
    Layout,
    New,
    Step,
    layout_of,
    on,
    strides_in_rows,
    unscaled,
)
from .tiles import LARGEST_WINDOW, Cover, Machine, Plan, ceil_div, plan_level

INSTALLED = importlib.util.find_spec("triton") is not None

# Rows and columns of a program of the sweep, and of one that halves: from each halving of its rows
# comes a level.
ROWS, COLUMNS = 4, 256
HALVED_ROWS, HALVED_COLUMNS = 16, 128
# Tiles that a warp sums at once.
TILES = 32
# Planes of a program that combines levels.
PLANES = 32
# Programs of the sweep for each multiprocessor, at most.
SWEEPERS = 16


def refuses(x: Tensor, y: Tensor, settings: Settings) -> str | None:
    """Why the path is not for these images, or ``None``."""
    if x.device.type not in ("cuda", "xpu") and not (x.device.type == "cpu" and _interpreted()):
        return f"the images are on {x.device} and it runs on GPUs"
    if torch.float64 in (x.dtype, y.dtype):
        return "it computes in float32, and the images are float64"
    if x.dim() != 4:
        return "it takes images (N, C, H, W), and these are volumes"
    if len(settings.window) > LARGEST_WINDOW:
        return f"its windows have at most {LARGEST_WINDOW} pixels, not {len(settings.window)}"
    return None


def missing(device: torch.device) -> str | None:
    """What the path would need to run, or ``None``."""
    if not INSTALLED:
        return "Triton is not installed"
    if torch.compiler.is_compiling():
        return None
    return _broken() or _too_old(device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _broken() -> str | None:
    try:
        import triton

        version = triton.__version__
        # Older compilers do not take the kernels' tuples.
        if tuple(map(int, version.split(".")[:2])) < (3, 6):
            return f"Triton {version} is installed and 3.6 is the oldest that compiles the kernels"
        _kernels()
    except Exception as error:  # Whatever a broken installation raises is the reason.
        return f"Triton cannot be used ({type(error).__name__}: {error})"
    return None


@functools.cache
def _too_old(device: torch.device) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"{device} has compute capability {major}.{minor}, not 8.0"


@functools.cache
def _kernels() -> Any:
    from .kernels import fused

    return fused


@functools.cache
def _level_kernels() -> Any:
    from .kernels import levels

    return levels


def means(
    x: Tensor,
    y: Tensor,
    weights: list[Tensor],
    window: list[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    levels: int,
    distance: bool,
    want: int,
    reduction: str,
    mix: Sequence[float],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Each level's mean over each plane, and its gradients with respect to the level's images.

    Args:
        x: images ``(N, C, H, W)`` in half precision or float32, of any layout.
        y: same shape and device.
        weights: for each level the weight of each map value, ``(N, 1, H', W')``, summing to one for
            each image; empty for plain means.
        window: taps of the separable window; odd in number, symmetric.
        low: the pixel value that counts as zero.
        c1: ``(k1 L)^2``.
        c2: ``(k2 L)^2``.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
        levels: means of the contrast-structure factor, each level's images half the size, and the
            mean of SSIM at the last level.
        distance: whether the mean of ``|x - y|`` follows.
        want: which gradients, `X` and `Y` or their sum; 0 for none.
        reduction: a `Result`'s, ``"none"`` for several levels, or with their distance but in a mix.
        mix: a `Result`'s.

    Returns:
        The means ``(levels, N, C)``, or one more, or what they are reduced to; and the gradients of
        the means with respect to each level's x and to its y, all times `usual_scale`, or those of
        the mix, empty lists if not wanted.
    """
    if want == Y:
        # SSIM is symmetric, and so the kernels have no third way.
        value, gradients, _ = means(
            *(y, x, weights, window, low, c1, c2, padding, levels, distance, X, reduction, mix)
        )
        return value, [], gradients
    settings = Settings(tuple(window), low, c1, c2, padding)
    layouts = layout_of(x), layout_of(y), tuple(map(layout_of, weights))
    memory = {"x": x, "y": y}
    memory.update((f"weight{j}", weight) for j, weight in enumerate(weights))
    with on(x.device):
        machine = _machine(x.device)
        how = settings, levels, distance, want, reduction, tuple(mix)
        for step in _steps(machine, x.device, *layouts, *how):
            step(memory)
    return (
        memory["means"],
        [memory[f"of_x{j}"] for j in range(levels)] if want & X else [],
        [memory[f"of_y{j}"] for j in range(levels)] if want & Y else [],
    )


@functools.lru_cache(maxsize=256)
def known(*call: Any) -> list[Any]:
    """Where is kept what such a call comes down to: nothing before the first."""
    return []


def forget() -> None:
    """Makes plans anew, for other tiles than before."""
    known.cache_clear()
    _steps.cache_clear()


class Reduction:
    """The `Result` of plain means for images with these layouts, of which the launches are left."""

    def __init__(
        self, x: Tensor, y: Tensor, settings: Settings, levels: int, want: int, result: Result
    ) -> None:
        self.device, self.turned = x.device, want == Y
        if self.turned:
            # As in `means`.
            x, y, want = y, x, X
        product, single = bool(result.exponents), result.reduction
        reduction, mix = ("none", ()) if product else (single, result.mix)
        how = settings, levels, bool(result.mix), want, reduction, mix
        images = layout_of(x), layout_of(y), ()
        self.steps = list(_steps(_machine(x.device), x.device, *images, *how))
        self.value, self.derivatives = "means", ["derivatives"] * product
        if product:
            news = [new for step in self.steps for new in step.new if isinstance(new, New)]
            (means,) = (new for new in news if new.name == "means")
            exponents = result.exponents, result.normalize, single, result.mix
            self.steps.append(_product(x.device, means.shape or (), *exponents))
            self.value = "value"
        names = [name for name, bit in zip("xy", (X, Y), strict=True) if want & bit]
        self.gradients = [f"of_{name}{j}" for name in names for j in range(levels)]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The result, the gradients that `means` gives, those of either image in one list, and the
        derivatives that `product` does.
        """
        memory = {"x": y, "y": x} if self.turned else {"x": x, "y": y}
        with on(self.device):
            for step in self.steps:
                step(memory)
        value = memory[self.value]
        return (
            value.squeeze(0) if value.dim() == 3 else value,
            [memory[name] for name in self.gradients],
            [memory[name] for name in self.derivatives],
        )


def sweep(
    gradients: list[Tensor],
    scale: Tensor,
    derivatives: list[Tensor],
    images: list[Tensor],
    usual: float,
) -> None:
    """Makes the first of the levels' gradients the whole one, in place.

    Args:
        gradients: of each level's mean with respect to its images, from `means`.
        scale: ``(levels, N, C)``, of the value with respect to the means, or one more with
            respect to the mean distance of the images; or a number for all planes of one level, or
            of ``derivatives``.
        derivatives: of the value's products with respect to the means, or none.
        images: between which the distance is, that of the gradient first; or none.
        usual: the scale that the gradients have already.
    """
    fine = gradients[0]
    memory = {f"level{j}": gradient for j, gradient in enumerate(gradients)}
    memory["scale"] = scale
    memory.update(zip(("x", "y"), images, strict=False))
    if derivatives:
        memory["derivatives"] = derivatives[0]
    layouts = tuple(map(layout_of, gradients)), layout_of(scale), tuple(map(layout_of, images))
    with on(fine.device):
        machine = _machine(fine.device)
        _sweep(machine, fine.device, *layouts, bool(derivatives), usual)(memory)


def product(
    means: Tensor,
    exponents: list[float],
    normalize: str | None,
    reduction: str,
    mix: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """The product over the levels of their means' powers, or what the planes' products are reduced
    to; and the products' derivatives by the means, or in a mix, of which the means have one row
    more, those of its loss.
    """
    means = means.contiguous()
    memory = {"means": means}
    with on(means.device):
        how = tuple(exponents), normalize, reduction, tuple(mix)
        _product(means.device, tuple(means.shape), *how)(memory)
    return memory["value"], memory["derivatives"]


@functools.lru_cache(maxsize=256)
def _steps(
    machine: Machine,
    device: torch.device,
    x: Layout,
    y: Layout,
    weights: tuple[Layout, ...],
    settings: Settings,
    levels: int,
    distance: bool,
    want: int,
    reduction: str,
    mix: tuple[float, ...],
) -> list[Step]:
    """What `means` does with images like these on that device."""
    planes = x.shape[0] * x.shape[1]
    images = [[Image(At(name), *a[1:]) for name, a in (("x", x), ("y", y))]]
    steps = []
    while len(images) < levels:
        halving, halves = _halving(images[-1], len(images), levels - len(images))
        steps.append(halving)
        images += halves
    shapes = tuple(a.shape for a, _ in images)
    taps = len(settings.window)
    plans: list[Plan] = []
    for j in range(levels):
        # A launch adds up all levels' sums, or none.
        added = reduction != "none" or bool(mix) or any(plan.sums > 1 for plan in plans[:1])
        how = settings.padding, want, bool(weights), distance and j == 0, added
        plans.append(plan_level(shapes, j, taps, *how, machine))
    counts = [plan.sums for plan in plans] + [plans[0].sums] * distance
    lost = taps - 1 if settings.padding == "valid" else 0
    wholes = [1.0 if weights else float((h - lost) * (w - lost)) for *_, h, w in shapes]
    pixels = float(math.prod(x.shape[2:]))
    wholes += [pixels] * distance
    structural, l1 = mix or (1.0, 0.0)
    most = max(counts)
    shape = x.shape[:2] if mix else (len(counts), *x.shape[:2])
    means = New("means", shape if reduction == "none" else ())
    # Where tiles are whole planes, their programs write the planes' means themselves.
    alone = most == 1 and reduction == "none" and not mix
    sums = means if alone else New("sums", (2 * len(counts) * planes * most,))
    pitch = 1 if alone else 2 * most
    # Where there is none, what is no other case for the compiler.
    total = _Total(False, False, (0.0,) * 5, At(sums.name), At(sums.name))
    if reduction != "none" and levels == 1 and plans[0].alone is not None:
        # The launch that has all sums adds them up too. The mean of the planes' means is that of
        # the tiles: all planes weigh the same.
        tiles = (float(planes * most), planes * wholes[0], planes * pixels, structural, l1)
        total = _Total(True, reduction == "loss", tiles, At(means.name), At("arrived"))

    of_levels = []
    for j in range(levels):
        gradients = [
            _gradient(f"of_{name}{j}", name, layout, shapes[j] if j else None)
            for name, layout, bit in zip("xy", (x, y), (X, Y), strict=True)
            if want & bit
        ]
        # The finest of those that lie together is the last that is needed.
        name = images[j][0].at.name
        of_level = _Level(
            images[j],
            Image(At(f"weight{j}"), weights[j].shape, weights[j].strides) if weights else None,
            [gradient for gradient, _ in gradients],
            At(sums.name, j * planes * pitch),
            At(sums.name, levels * planes * pitch) if distance and j == 0 else None,
            pitch,
            wholes[j] if alone else 0.0,
            structural * usual_scale(x.shape) / wholes[j],
            l1 / (planes * pixels) if mix else None,
            j < levels - 1,
            total,
            (*(new for _, new in gradients), *[sums] * (j == levels - 1)),
            (name,) if j > 0 and images[j - 1][0].at.name != name else (),
        )
        of_levels.append(of_level)
    # From the coarsest on, for the halves to be gone where the gradients are large.
    if levels > 1 and plans[0].alone is not None:
        steps.append(_coarser(of_levels[1:], plans[1:], settings, machine))
        of_levels, plans = of_levels[:1], plans[:1]
    for of_level, plan in zip(reversed(of_levels), reversed(plans), strict=True):
        steps += _of_level(of_level, plan, settings, machine)
    if total.added:
        steps[-1].new += means, Counter(total.arrived.name)
        steps[-1].last += sums.name, total.arrived.name
    elif not alone:
        programs, warps = (1 if mix else len(counts)) * planes, 1
        if reduction != "none":
            programs, warps = 1, 4
            counts = [planes * most] * len(counts)
            wholes = [planes * whole for whole in wholes]
        steps.append(
            Step(
                *(_kernels().mean, programs, warps, At(sums.name), At(means.name)),
                # Integers in a tuple are cases for the compiler, whatever a kernel asks for.
                *(tuple(map(float, counts)), tuple(wholes), planes, pitch, structural, l1),
                LANES=warps * TILES,
                DISTANCE=distance,
                LOSS=reduction == "loss" or bool(mix),
                MIXED=bool(mix),
                new=(means,),
                last=(sums.name,),
            )
        )
    return steps


def _gradient(
    name: str, image: str, layout: Layout, shape: tuple[int, ...] | None
) -> tuple[Image, New]:
    """Where the gradient of an image of that layout goes, or of its halves of that shape."""
    new = New(name, shape, image)
    if shape is not None:
        return Image(At(name), shape, strides_in_rows(shape)), new
    like = torch.empty_strided(layout.shape, layout.strides, dtype=layout.dtype, device="meta")
    return Image(At(name), layout.shape, unscaled(like).stride()), new


def _halving(images: list[Image], first: int, levels: int) -> tuple[Step, list[list[Image]]]:
    """Both images at half the size, at half of that and so on, as far as one launch goes."""
    n, c, height, width = shape = images[0].shape
    levels = min(levels, HALVED_ROWS.bit_length() - 1)
    at, halves = At(f"halves{first}"), []
    for _ in range(levels):
        shape = tuple(halved(shape))
        strides = strides_in_rows(shape)
        pair = [Image(at.on(i * shape[0] * strides[0]), shape, strides) for i in range(2)]
        halves.append(pair)
        at = at.on(2 * shape[0] * strides[0])
    strips, bands = ceil_div(width, HALVED_COLUMNS), ceil_div(height, HALVED_ROWS)
    x, y = images
    step = Step(
        *(_level_kernels().pyramid, n * c * strips * bands, 4, x.at, y.at),
        *(tuple(a.at for a, _ in halves), tuple(b.at for _, b in halves)),
        *(tuple(a.strides[2] for a, _ in halves), x.strides, y.strides),
        *(strips, bands, c, height, width),
        ROWS=HALVED_ROWS,
        LANES=HALVED_COLUMNS,
        WHOLE=width % _level_kernels().AT_ONCE.value == 0,
        new=(New(at.name, (at.offset,)),),
    )
    return step, halves


class _Total(NamedTuple):
    """What the last program of a launch makes of the sums of all.

    Attributes:
        added: whether it adds them up; if not, the rest has no meaning.
        loss: whether the result is 1 less the mean.
        tiles: the kernels' ``all_tiles``.
        result: where that goes.
        arrived: counts the programs.
    """

    added: bool
    loss: bool
    tiles: tuple[float, ...]
    result: At
    arrived: At


class _Level(NamedTuple):
    """What is computed of a level, from where to where.

    Attributes:
        images: both.
        weight: of the map's values, or ``None``.
        gradients: as many as wanted.
        sums: where the first program's sum goes.
        distances: where the first sum of |x - y| goes, or ``None``.
        pitch: values from a plane's first sum to the next one's.
        whole: the sum of a plane's weights, or 0 where sums are added up.
        share: of each of the map's values in the result.
        apart: of each pixel's |x - y| in the result; or ``None`` where it is no mix.
        contrast: whether the factor is contrast-structure alone: the luminance of the formulas is
            1 with an infinite ``c1``.
        total: what its launch makes of all sums.
        new: what its first launch allocates beside its own.
        last: what nothing needs after it.
    """

    images: list[Image]
    weight: Image | None
    gradients: list[Image]
    sums: At
    distances: At | None
    pitch: int
    whole: float
    share: float
    apart: float | None
    contrast: bool
    total: _Total
    new: tuple[New, ...]
    last: tuple[str, ...]

    @property
    def arguments(self) -> tuple[Image, Image, Image, Image, Image]:
        """Both images, the weights and both gradients: where there are none, something that is no
        other case for the compiler.
        """
        x, y = self.images
        gradients = self.gradients or [x]
        return x, y, self.weight or x._replace(strides=(0,) * 4), gradients[0], gradients[-1]

    @property
    def dense(self) -> bool:
        """Whether images and gradients are."""
        return all(image.dense for image in (*self.images, *self.gradients))


def _variant(
    level: _Level, plan: Plan, cover: Cover, settings: Settings, machine: Machine, **others: Any
) -> Any:
    """What a kernel of a level is compiled for."""
    kernels = _kernels()
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    taps = len(settings.window)
    return kernels.Variant.of(
        LANES=cover.lanes,
        COLUMNS=cover.columns,
        TURN=cover.turn,
        LATE=others.get("late", cover.late),
        WHOLE=cover.whole,
        DENSE=level.dense,
        TAPS=taps,
        PITCH=cover.pitch(taps),
        PADDING=codes[settings.padding].value,
        WANT=plan.want,
        WEIGHTED=level.weight is not None,
        DISTANCE=level.distances is not None,
        MIXED=others.get("mixed", False),
        SHARED=machine.shared,
        ADDED=level.total.added,
        LOSS=level.total.loss,
        # With all derivatives, of the largest windows, `derive` takes one register too many.
        FAST=machine.shared and (plan.march is not None or not plan.want),
    )


def _parts(level: _Level, settings: Settings) -> tuple[Any, Any]:
    """The window and the numbers of the formulas, as kernels take them."""
    kernels = _kernels()
    window, low, c1, c2, _ = settings
    numbers = kernels.Constants(low, math.inf if level.contrast else c1, c2)
    return kernels.Window(*_passes(window)), numbers


def _of_level(level: _Level, plan: Plan, settings: Settings, machine: Machine) -> list[Step]:
    """The launches that write a level's gradients and its programs' sums."""
    if plan.march is not None:
        return [_march(level, plan, plan.march, settings, machine)]
    return _slabs(level, plan, settings, machine)


def _march(level: _Level, plan: Plan, cover: Cover, settings: Settings, machine: Machine) -> Step:
    x, y, weight, gradient, other = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    window, numbers = _parts(level, settings)
    programs, taps = cover.programs(n * c), len(settings.window)
    size = programs * plan.kept_rows(taps) * cover.pitch(taps)
    scratch, kept = _scratch(machine, level.images[0], size)
    total = level.total
    return Step(
        *(_kernels().march, programs, cover.warps, x, y, weight, gradient, other, scratch),
        *(level.sums, level.distances or level.sums, total.result, total.arrived, level.pitch),
        *(0, cover.strips, cover.parts, cover.rows, c, height, width, *window, numbers),
        *(window.root**2 * level.share, level.apart or 0.0, level.whole, total.tiles),
        K=_variant(level, plan, cover, settings, machine, mixed=level.apart is not None),
        new=(*level.new, *kept),
        last=(*level.last, *(memory.name for memory in kept)),
    )


def _coarser(levels: list[_Level], plans: list[Plan], settings: Settings, machine: Machine) -> Step:
    """The launch that does the same for all levels but the finest."""
    first = levels[0].images[0]
    covers = [plan.alone for plan in plans if plan.alone is not None]
    cover, taps = covers[0], len(settings.window)
    n, c, height, width = first.shape
    window, numbers = _parts(levels[-1], settings)
    images = list(zip(*(level.arguments for level in levels), strict=True))
    x, y, weight, gradient, other = (tuple(image.at for image in of_all) for of_all in images)
    programs = sum(cover.programs(n * c) for cover in covers)
    rows = max(cover.rows for cover in covers)
    size = programs * plans[0].kept_rows(taps) * cover.pitch(taps)
    scratch, kept = _scratch(machine, first, size)
    return Step(
        *(_level_kernels().coarser, programs, cover.warps, x, y, weight, gradient, other),
        *(scratch, levels[0].sums, tuple(image.strides for image in images[2]), levels[0].pitch),
        *(n * c, rows, c, height, width, *window, numbers),
        tuple(window.root**2 * level.share for level in levels),
        tuple(level.whole for level in levels),
        K=_variant(levels[0], plans[0], cover, settings, machine, late=False),
        new=(*(new for level in reversed(levels) for new in level.new), *kept),
        last=(*(name for level in levels for name in level.last), *(new.name for new in kept)),
    )


def _slabs(level: _Level, plan: Plan, settings: Settings, machine: Machine) -> list[Step]:
    kernels = _kernels()
    x, y, weight, gradient, other = map(_in_kernel, level.arguments)
    n, c, height, width = level.images[0].shape
    planes, taps = n * c, len(settings.window)
    window, numbers = _parts(level, settings)
    share = window.root**2 * level.share
    distances, total = level.distances or level.sums, level.total
    reach = taps - 1 if plan.want else 0
    depth = max(slab.bottom - slab.top for slab in plan.slabs) + reach
    maps = New("maps", (plan.planes * plan.maps * depth * plan.pitch,))
    most = max(slab.derive.programs(plan.planes) * slab.derive.pitch(taps) for slab in plan.slabs)
    scratch, kept = _scratch(machine, level.images[0], 4 * most)
    kept += [maps] * bool(plan.want)
    steps: list[Step] = []
    done = 0
    for slab in plan.slabs:
        derive, gather = slab.derive, slab.gather
        # A position that belongs to two slabs counts in the first one.
        own_top = slab.top if done else slab.top - reach
        for first in range(0, planes, plan.planes):
            here = min(plan.planes, planes - first)
            steps.append(
                Step(
                    *(kernels.derive, derive.programs(here), derive.warps, x, y, weight),
                    *(At(maps.name) if plan.want else x.address, scratch),
                    *(level.sums.on(done), distances.on(done), total.result, total.arrived),
                    *(level.pitch, plan.pitch, 0, derive.strips, derive.parts, derive.rows),
                    *(derive.lines(here), first, slab.top - reach, slab.bottom, own_top),
                    *(c, height, width, *window, numbers, level.whole, total.tiles),
                    K=_variant(level, plan, derive, settings, machine),
                    new=() if steps else (*level.new, *kept),
                )
            )
            if plan.want:
                mixed = level.apart is not None
                steps.append(
                    Step(
                        *(kernels.gather, gather.programs(here), gather.warps),
                        *(x, y, gradient, other, At(maps.name), plan.pitch),
                        *(gather.strips, gather.parts, gather.rows, first, slab.top, slab.bottom),
                        *(c, height, width, *window, numbers, share, level.apart or 0.0),
                        K=_variant(level, plan, gather, settings, machine, mixed=mixed),
                    )
                )
        done += 2 * derive.sums
    steps[-1].last = (*level.last, *(memory.name for memory in kept))
    return steps


def _in_kernel(image: Image) -> Any:
    return _kernels().Image(image.at, image.strides)


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


def _scratch(machine: Machine, x: Image, size: int) -> tuple[At, list[New]]:
    """Scratch memory of so many values, where programs have no shared memory."""
    if machine.shared:
        # Something that is no other case for the compiler.
        return x.at, []
    return At("scratch"), [New("scratch", (size,))]


@functools.lru_cache(maxsize=256)
def _sweep(
    machine: Machine,
    device: torch.device,
    gradients: tuple[Layout, ...],
    scale: Layout,
    images: tuple[Layout, ...],
    product: bool,
    usual: float,
) -> Step:
    """What `sweep` does with gradients like these on that device."""
    fine, *coarse = gradients
    n, c, height, width = fine.shape
    strips = ceil_div(width, COLUMNS)
    # No more programs than keep the multiprocessors busy: most have nothing to do.
    bands = min(
        ceil_div(height, ROWS), ceil_div(SWEEPERS * machine.multiprocessors, n * c * strips)
    )
    rows = ROWS * ceil_div(ceil_div(height, ROWS), bands)
    bands = ceil_div(height, rows)
    x, y = (
        ((At("x"), images[0].strides), (At("y"), images[1].strides))
        if images
        else (
            (At("level0"), fine.strides),
            (At("level0"), fine.strides),
        )
    )
    return Step(
        *(_level_kernels().sweep, n * c * strips * bands, 4, At("level0")),
        tuple(At(f"level{j}") for j in range(1, len(gradients))) or (At("level0"),),
        *(tuple(level.strides[2] for level in coarse) or (0,), At("scale")),
        *(At("derivatives" if product else "scale"), x[0], y[0]),
        *(fine.strides, (0, 0, 0, *scale.strides)[-3:], x[1], y[1]),
        *(strips, bands, rows, n * c, c, height, width, usual),
        COARSE=len(coarse),
        PRODUCT=product,
        ROWS=ROWS,
        LANES=COLUMNS,
        WHOLE=width % _level_kernels().AT_ONCE.value == 0,
        DISTANCE=bool(images),
    )


@functools.lru_cache(maxsize=256)
def _product(
    device: torch.device,
    shape: tuple[int, ...],
    exponents: tuple[float, ...],
    normalize: str | None,
    reduction: str,
    mix: tuple[float, ...],
) -> Step:
    """What `product` does with means of this shape on that device."""
    kernels = _level_kernels()
    codes = {
        "floor": kernels.FLOOR,
        "relu": kernels.RELU,
        "simple": kernels.SIMPLE,
        None: kernels.PLAIN,
    }
    planes = shape[1] * shape[2]
    total = reduction != "none"
    programs, warps = (1, 8) if total else (ceil_div(planes, PLANES), 1)
    return Step(
        *(kernels.product, programs, warps, At("means"), At("value"), At("derivatives")),
        *(exponents, FLOOR, planes, *(mix or (1.0, 0.0))),
        NORMALIZE=codes[normalize].value,
        LANES=PLANES * warps,
        TOTAL=total,
        LOSS=reduction == "loss",
        MIXED=bool(mix),
        new=(
            New("value", () if total else shape[1:]),
            New("derivatives", shape),
        ),
    )


@functools.cache
def _machine(device: torch.device) -> Machine:
    if device.type != "cuda":
        # The interpreter does one program after the other. No other device has been measured.
        return Machine(device.type, 1 if device.type == "cpu" else 64)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        architecture = str(properties.gcnArchName)
    else:
        architecture = f"sm_{properties.major}{properties.minor}"
    return Machine(architecture, properties.multi_processor_count)
