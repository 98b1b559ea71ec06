"""The GPU path: launches of the Triton kernels, for tensors read where and as they lie."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .contract import FLOOR, Settings, X, Y, halved, usual_scale

INSTALLED = importlib.util.find_spec("triton") is not None


class Tile(NamedTuple):
    """The pixels of a program.

    Attributes:
        lanes: possible numbers of threads.
        columns: neighbouring columns of a thread, 1 or 2 (or 4 without a map to write): what they
            share is loaded once.
        turn: rows of the image in one turn of the loop. More of them move fewer sums from register
            to register, and take longer to compile.
        warps: whose registers fit on a multiprocessor at once.
    """

    lanes: tuple[int, ...]
    columns: int
    turn: int
    warps: int


class Launches(NamedTuple):
    """The tiles of each kernel. Without one for `march`, `derive` and `gather` give the gradient.

    Attributes:
        value: of `derive` for plain means of windows inside the image, without a gradient.
        march: of `march`, or ``None``.
        derive: of `derive` for all else.
        gather: of `gather`.
    """

    value: Tile
    march: Tile | None
    derive: Tile
    gather: Tile


_WIDTHS = (32, 64, 128)

# For each architecture, and up to each window size.
LAUNCHES: dict[str | None, dict[int, Launches]] = {
    None: {
        11: Launches(
            value=Tile(_WIDTHS, 4, 1, 8),
            march=Tile((64, 128), 2, 1, 8),
            derive=Tile((64, 128), 2, 1, 10),
            gather=Tile(_WIDTHS, 2, 1, 8),
        ),
        21: Launches(
            value=Tile(_WIDTHS, 2, 1, 8),
            march=Tile((64, 128), 1, 1, 8),
            derive=Tile(_WIDTHS, 2, 1, 8),
            gather=Tile(_WIDTHS, 1, 1, 8),
        ),
        33: Launches(
            value=Tile((64, 128), 1, 1, 8),
            march=None,
            derive=Tile((64, 128), 1, 1, 8),
            gather=Tile((64, 128), 1, 1, 8),
        ),
    }
}
# Rows of a program, at least: each computes the rows before its own too.
SHORTEST = 8
# Rows that take as long as the launch that adds up a plane's tiles.
MEAN = 48
# Bytes of the derivatives between `derive` and `gather`: not much beyond a second-level cache.
WORKSPACE = 64 * 2**20
# Rows and columns of a program of the sweep, and of one that halves: from each halving of its rows
# comes a level.
ROWS, COLUMNS = 4, 256
HALVED_ROWS, HALVED_COLUMNS = 16, 128
# Tiles that a program sums at once.
TILES = 512
# Planes of a program that combines levels.
PLANES = 32
# Programs of the sweep for each multiprocessor, at most.
SWEEPERS = 16
# The filters are multiply-adds, which Triton 3.10 will no longer fuse unless it is asked to.
OPTIONS = {"enable_fp_fusion": True}


def refuses(x: Tensor, y: Tensor, settings: Settings) -> str | None:
    """Why the path is not for these images, or ``None``."""
    if x.device.type not in ("cuda", "xpu") and not (x.device.type == "cpu" and _interpreted()):
        return f"the images are on {x.device} and it runs on GPUs"
    if torch.float64 in (x.dtype, y.dtype):
        return "it computes in float32, and the images are float64"
    if x.dim() != 4:
        return "it takes images (N, C, H, W), and these are volumes"
    if len(settings.window) > max(LAUNCHES[None]):
        return f"its windows have at most {max(LAUNCHES[None])} pixels, not {len(settings.window)}"
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
    from . import gpu_kernels

    return gpu_kernels


@functools.cache
def _level_kernels() -> Any:
    from . import gpu_level_kernels

    return gpu_level_kernels


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
        reduction: a `Result`'s, ``"none"`` for several levels or with their distance.

    Returns:
        The means ``(levels, N, C)``, or one more, or what they are reduced to; and the gradients of
        the means with respect to each level's x and to its y, all times `usual_scale`, empty lists
        if not wanted.
    """
    if want == Y:
        # SSIM is symmetric, and so the kernels have no third way.
        value, gradients, _ = means(
            *(y, x, weights, window, low, c1, c2, padding, levels, distance, X, reduction)
        )
        return value, [], gradients
    settings = Settings(tuple(window), low, c1, c2, padding)
    layouts = _layout(x), _layout(y), tuple(map(_layout, weights))
    memory = {"x": x, "y": y}
    memory.update((f"weight{j}", weight) for j, weight in enumerate(weights))
    with _on(x.device):
        machine = _machine(x.device)
        how = settings, levels, distance, want, reduction
        for step in _steps(machine, x.device, *layouts, *how):
            step(memory)
    return (
        memory["means"],
        [memory[f"of_x{j}"] for j in range(levels)] if want & X else [],
        [memory[f"of_y{j}"] for j in range(levels)] if want & Y else [],
    )


def sweep(gradients: list[Tensor], scale: Tensor, images: list[Tensor], usual: float) -> None:
    """Makes the first of the levels' gradients the whole one, in place.

    Args:
        gradients: of each level's mean with respect to its images, from `means`.
        scale: ``(levels, N, C)``, of the value with respect to the means, or one more with
            respect to the mean distance of the images; or a number for all planes of one level.
        images: between which the distance is, that of the gradient first; or none.
        usual: the scale that the gradients have already.
    """
    fine = gradients[0]
    memory = {f"level{j}": gradient for j, gradient in enumerate(gradients)}
    memory["scale"] = scale
    memory.update(zip(("x", "y"), images, strict=False))
    layouts = tuple(map(_layout, gradients)), _layout(scale), tuple(map(_layout, images))
    with _on(fine.device):
        _sweep(_machine(fine.device), fine.device, *layouts, usual)(memory)


def product(
    means: Tensor, exponents: list[float], normalize: str | None, reduction: str
) -> tuple[Tensor, Tensor]:
    """The product over the levels of their means' powers, or what the planes' products are reduced
    to; and the products' derivatives by the means.
    """
    means = means.contiguous()
    memory = {"means": means}
    with _on(means.device):
        _product(means.device, _layout(means), tuple(exponents), normalize, reduction)(memory)
    return memory["value"], memory["derivatives"]


class _Layout(NamedTuple):
    """What a kernel is compiled for, and launched with, of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool


def _layout(tensor: Tensor) -> _Layout:
    return _Layout(tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() % 16 == 0)


@dataclasses.dataclass(frozen=True)
class _At:
    """An argument in memory: of the tensor with that name, so many float32 values on."""

    name: str
    offset: int = 0

    def on(self, values: int) -> _At:
        return _At(self.name, self.offset + values)

    def tensor(self, memory: dict[str, Tensor]) -> Tensor:
        tensor = memory[self.name]
        return tensor.view(-1)[self.offset :] if self.offset else tensor

    def address(self, memory: dict[str, Tensor]) -> int:
        return memory[self.name].data_ptr() + 4 * self.offset


class _New(NamedTuple):
    """Memory that a step allocates: the gradient of an image, or so many float32 values."""

    name: str
    shape: tuple[int, ...]
    image: str = ""

    def tensor(self, memory: dict[str, Tensor]) -> Tensor:
        if not self.image:
            any_there = next(iter(memory.values()))
            return any_there.new_empty(self.shape, dtype=torch.float32)
        image = memory[self.image]
        return unscaled(image) if self.shape == image.shape else in_rows(image, self.shape)


class _Step:
    """A launch, and the memory that it needs: all but where that is.

    What Triton has compiled for such arguments it finds out anew at each launch, which takes longer
    than small images do. A step that is kept knows from its second call on.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        warps: int,
        *arguments: Any,
        new: tuple[_New, ...] = (),
        last: tuple[str, ...] = (),
        **constants: Any,
    ) -> None:
        """Describes a launch.

        Args:
            kernel: one of Triton's.
            programs: how many.
            warps: of a program.
            *arguments: numbers, `_At` and tuples of them.
            new: what it allocates.
            last: names of what nothing needs afterwards.
            **constants: the arguments that are compiled in.
        """
        self.kernel, self.programs, self.warps = kernel, programs, warps
        self.arguments, self.constants = arguments, constants
        self.new, self.last = new, last
        self.again: Any = None

    def __call__(self, memory: dict[str, Tensor]) -> None:
        for new in self.new:
            memory[new.name] = new.tensor(memory)
        if self.again is None:
            self._first(memory)
        else:
            arguments = self.known.copy()
            for index, at in self.moving:
                arguments[index] = at.address(memory)
            for index, several in self.nested:
                arguments[index] = tuple(at.address(memory) for at in several)
            self.again(*arguments)
        for name in self.last:
            del memory[name]

    def _first(self, memory: dict[str, Tensor]) -> None:
        arguments = list(self.arguments)
        moving = [(i, at) for i, at in enumerate(arguments) if isinstance(at, _At)]
        nested = [(i, at) for i, at in enumerate(arguments) if _nested(at)]
        for i, at in moving:
            arguments[i] = at.tensor(memory)
        for i, several in nested:
            arguments[i] = tuple(at.tensor(memory) for at in several)
        compiled = _launch(self.kernel, self.programs, self.warps, *arguments, **self.constants)
        if _takes_addresses(next(iter(memory.values())).device):
            names = self.kernel.arg_names[len(arguments) :]
            constants = (self.constants[name] for name in names)
            self.known = [*self.arguments, *constants]
            self.moving, self.nested = moving, nested
            self.again = compiled[(self.programs, 1, 1)]


def _nested(argument: Any) -> bool:
    return isinstance(argument, tuple) and bool(argument) and isinstance(argument[0], _At)


def _takes_addresses(device: torch.device) -> bool:
    """Whether what Triton has compiled can be launched with addresses for tensors."""
    return device.type == "cuda"


class Machine(NamedTuple):
    """What the launches depend on."""

    architecture: str
    multiprocessors: int

    @property
    def shared(self) -> bool:
        """Whether the kernels have a way to shared memory, which they address in PTX."""
        return self.architecture.startswith("sm_")


class _Image(NamedTuple):
    """Where an image lies, or a gradient."""

    at: _At
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool = True

    @property
    def dense(self) -> bool:
        """Whether the compiler can tell that neighbouring columns are one aligned access: of a
        number it knows whether it is 1, and whether 16 divides it.
        """
        return self.aligned and self.strides[3] == 1 and not any(s % 16 for s in self.strides[:3])


@functools.lru_cache(maxsize=256)
def _steps(
    machine: Machine,
    device: torch.device,
    x: _Layout,
    y: _Layout,
    weights: tuple[_Layout, ...],
    settings: Settings,
    levels: int,
    distance: bool,
    want: int,
    reduction: str,
) -> list[_Step]:
    """What `means` does with images like these on that device."""
    planes = x.shape[0] * x.shape[1]
    images = [[_Image(_At(name), *a[1:]) for name, a in (("x", x), ("y", y))]]
    steps = []
    while len(images) < levels:
        halving, halves = _halving(images[-1], len(images), levels - len(images))
        steps.append(halving)
        images += halves
    shapes = tuple(a.shape for a, _ in images)
    taps = len(settings.window)
    jobs = [
        _job(shapes, j, taps, settings.padding, want, bool(weights), distance and j == 0, machine)
        for j in range(levels)
    ]
    counts = [job.sums for job in jobs] + [jobs[0].sums] * distance
    lost = taps - 1 if settings.padding == "valid" else 0
    wholes = [1.0 if weights else float((h - lost) * (w - lost)) for *_, h, w in shapes]
    wholes += [float(math.prod(x.shape[2:]))] * distance
    most = max(counts)
    means = _New("means", (len(counts), *x.shape[:2]) if reduction == "none" else ())
    # Where tiles are whole planes, their programs write the planes' means themselves.
    alone = most == 1 and reduction == "none"
    sums = means if alone else _New("sums", (2 * len(counts) * planes * most,))
    pitch = 1 if alone else 2 * most

    # From the coarsest on, for the halves to be gone where the gradients are large.
    for j in reversed(range(levels)):
        gradients = [
            _gradient(f"of_{name}{j}", name, layout, image.shape)
            for name, layout, image, bit in zip("xy", (x, y), images[j], (X, Y), strict=True)
            if want & bit
        ]
        of_level = _Level(
            images[j],
            _Image(_At(f"weight{j}"), weights[j].shape, weights[j].strides) if weights else None,
            [gradient for gradient, _ in gradients],
            _At(sums.name, j * planes * pitch),
            _At(sums.name, levels * planes * pitch) if distance and j == 0 else None,
            pitch,
            wholes[j] if alone else 0.0,
            usual_scale(x.shape) / wholes[j],
            j < levels - 1,
        )
        new = [new for _, new in gradients] + [sums] * (j == levels - 1)
        # The finest of those that lie together is the last that is needed.
        name = images[j][0].at.name
        last = [name] if j > 0 and images[j - 1][0].at.name != name else []
        steps += _of_level(of_level, jobs[j], settings, machine, new, last)
    if not alone:
        programs, warps = len(counts) * planes, 1
        if reduction != "none":
            # The mean of the planes' means is that of the tiles: all planes weigh the same.
            programs, warps = 1, 4
            counts, wholes = [planes * most], [planes * wholes[0]]
        steps.append(
            _Step(
                *(_kernels().mean, programs, warps, _At(sums.name), _At(means.name)),
                # Integers in a tuple are cases for the compiler, whatever a kernel asks for.
                *(tuple(map(float, counts)), tuple(wholes), planes, pitch),
                LANES=warps * TILES,
                DISTANCE=distance,
                LOSS=reduction == "loss",
                new=(means,),
                last=(sums.name,),
            )
        )
    return steps


def _gradient(
    name: str, image: str, layout: _Layout, shape: tuple[int, ...]
) -> tuple[_Image, _New]:
    """Where the gradient of a level's image goes, the finest of which has that layout."""
    if shape == layout.shape:
        like = torch.empty_strided(shape, layout.strides, dtype=layout.dtype, device="meta")
        strides = unscaled(like).stride()
    else:
        strides = _in_rows(shape)
    return _Image(_At(name), shape, strides), _New(name, shape, image)


def _halving(images: list[_Image], first: int, levels: int) -> tuple[_Step, list[list[_Image]]]:
    """Both images at half the size, at half of that and so on, as far as one launch goes."""
    n, c, height, width = shape = images[0].shape
    levels = min(levels, HALVED_ROWS.bit_length() - 1)
    at, halves = _At(f"halves{first}"), []
    for _ in range(levels):
        shape = tuple(halved(shape))
        strides = _in_rows(shape)
        pair = [_Image(at.on(i * shape[0] * strides[0]), shape, strides) for i in range(2)]
        halves.append(pair)
        at = at.on(2 * shape[0] * strides[0])
    strips, bands = _ceil(width, HALVED_COLUMNS), _ceil(height, HALVED_ROWS)
    x, y = images
    step = _Step(
        *(_level_kernels().pyramid, n * c * strips * bands, 4, x.at, y.at),
        *(tuple(a.at for a, _ in halves), tuple(b.at for _, b in halves)),
        *(tuple(a.strides[2] for a, _ in halves), x.strides, y.strides),
        *(strips, bands, c, height, width),
        ROWS=HALVED_ROWS,
        LANES=HALVED_COLUMNS,
        new=(_New(at.name, (at.offset,)),),
    )
    return step, halves


class _Cover(NamedTuple):
    """How programs share some planes.

    Attributes:
        whole: whether no thread's columns lie on both sides of the image's right edge, which makes
            loads wide; the same for all coarser levels, which are then one compilation.
        lanes: threads of a program.
        columns: of each thread.
        turn: rows in a turn of the loop.
        strips: of columns, as wide as a program.
        height: rows of a strip.
        rows: of a program.
        across: whether a program that ends a strip goes on in the next one, so that all have as
            many rows.
    """

    whole: bool
    lanes: int
    columns: int
    turn: int
    strips: int
    height: int
    rows: int
    across: bool

    @property
    def parts(self) -> int:
        """The most programs in a strip."""
        return _ceil(self.height, self.rows) + (self.across and self.height % self.rows > 0)

    @property
    def sums(self) -> int:
        """Of each plane."""
        return self.strips * self.parts

    def lines(self, planes: int) -> int:
        """Rows of all strips."""
        return planes * self.strips * self.height

    def programs(self, planes: int) -> int:
        """How many there are."""
        return _ceil(self.lines(planes), self.rows) if self.across else planes * self.sums


class _Slab(NamedTuple):
    """Rows of the image whose derivatives are in memory at once."""

    top: int
    bottom: int
    derive: _Cover
    gather: _Cover


class _Job(NamedTuple):
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
    march: _Cover | None
    slabs: tuple[_Slab, ...]
    planes: int
    pitch: int

    @property
    def maps(self) -> int:
        """Maps of derivatives."""
        return 4 if self.want == X + Y else 3


def _job(
    shapes: tuple[tuple[int, ...], ...],
    level: int,
    taps: int,
    padding: str,
    want: int,
    weighted: bool,
    distance: bool,
    machine: Machine,
) -> _Job:
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
        tile = launches.value if plain else launches.derive
        columns = tile.columns
        left = 0 if padding == "valid" else columns * _ceil(radius, columns)
        beside = left - before - (reach if padding == "valid" else 0)
        if distance:
            # A position for each row and column of pixels, if beside the map.
            bottom, beside = height - before, left
        cover = _cover(
            *(tile, machine, planes, bottom - top, shapes, level, reach, beside),
            across=True,
        )
        return _Job(want, cover.sums, None, (_Slab(top, bottom, cover, cover),), planes, 0)
    if launches.march is not None:
        # A turn of the rows before the first of the map takes half the time of the others.
        before = reach + reach // 2
        cover = _cover(launches.march, machine, planes, height, shapes, level, before, halo=reach)
        return _Job(want, cover.sums, cover, (), planes, 0)

    maps = 4 if want == X + Y else 3
    # Room for what the last threads of a row read and write beyond it, with most lanes.
    derived, gathered = (
        tile.columns * max(tile.lanes) for tile in (launches.derive, launches.gather)
    )
    pitch = max(
        derived * _ceil(width + reach, derived), gathered * _ceil(width, gathered) + taps + 3
    )
    pitch = 16 * _ceil(pitch, 16)
    rows = min(max(WORKSPACE // (4 * maps * pitch) - reach, taps), height)
    at_once = min(max(WORKSPACE // (4 * maps * pitch * (rows + reach)), 1), planes)
    slabs = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        both = (shapes, level, reach)
        derive = _cover(
            *(launches.derive, machine, at_once, bottom - top + reach, *both, reach), across=True
        )
        gather = _cover(launches.gather, machine, at_once, bottom - top, *both)
        slabs.append(_Slab(top, bottom, derive, gather))
    sums = sum(slab.derive.sums for slab in slabs)
    return _Job(want, sums, None, tuple(slabs), at_once, pitch)


def _cover(
    tile: Tile,
    machine: Machine,
    planes: int,
    height: int,
    shapes: tuple[tuple[int, ...], ...],
    level: int,
    before: int,
    beside: int = 0,
    halo: int = 0,
    across: bool = False,
) -> _Cover:
    """Programs of ``tile``'s kind that take the least time, in rows that one does.

    Args:
        tile: what is possible.
        machine: where they run: so many programs at once, and the next when these are done.
        planes: of each image.
        height: rows of the level.
        shapes: of all levels.
        level: the number of the level.
        before: rows that a program computes beside its own, in each strip.
        beside: columns more than those of the images.
        halo: columns of a strip that are its neighbour's.
        across: whether programs go on in the next strip.
    """

    def fit(lanes: int, height: int, width: int) -> tuple[float, int, int]:
        """Time, strips and rows of a program."""
        strips = _ceil(width, lanes * tile.columns - halo)
        at_once = machine.multiprocessors * max(1, tile.warps // _warps(lanes))
        lines = planes * strips * height

        def time(rows: int) -> float:
            parts = lines / rows if across else planes * strips * _ceil(height, rows)
            # Most programs begin in one strip, and those that end in the next begin there again.
            begun = 1 + rows / height if across and height % rows else 1
            mean = MEAN * (strips > 1 or rows < height)
            return _ceil(math.ceil(parts), at_once) * (rows + begun * before) + mean

        if across:
            least = _ceil(lines, at_once * height)
            shares = [_ceil(lines, waves * at_once) for waves in range(least, least + 4)]
        else:
            shares = [_ceil(height, bands) for bands in range(1, _ceil(height, SHORTEST) + 1)]
        possible = {height, *(max(share, SHORTEST) for share in shares)}
        return min((time(rows), strips, rows) for rows in possible if rows <= height)

    def cost(lanes: int) -> tuple[float, int, int]:
        """Of all levels, then their threads."""
        fits = [fit(lanes, shape[2], shape[3] + beside) for shape in shapes]
        return sum(time for time, *_ in fits), lanes * sum(strips for _, strips, _ in fits), -lanes

    # The same for all levels, because for another number the kernel is compiled again.
    lanes = min((lanes for lanes in tile.lanes if lanes * tile.columns > halo), key=cost)
    _, strips, rows = fit(lanes, height, shapes[level][3] + beside)
    alike = shapes[1:] if level else shapes[:1]
    whole = all(shape[3] % tile.columns == 0 for shape in alike)
    return _Cover(whole, lanes, tile.columns, tile.turn, strips, height, rows, across)


class _Level(NamedTuple):
    """What is computed of a level, from where to where.

    Attributes:
        images: both.
        weight: of the map's values, or ``None``.
        gradients: as many as wanted.
        sums: where the first program's sum goes.
        distances: where the first sum of |x - y| goes, or ``None``.
        pitch: values from a plane's first sum to the next one's.
        whole: the sum of a plane's weights, or 0 where `mean` follows.
        share: of each of the map's values in the result.
        contrast: whether the factor is contrast-structure alone.
    """

    images: list[_Image]
    weight: _Image | None
    gradients: list[_Image]
    sums: _At
    distances: _At | None
    pitch: int
    whole: float
    share: float
    contrast: bool


def _of_level(
    level: _Level,
    job: _Job,
    settings: Settings,
    machine: Machine,
    new: list[_New],
    last: list[str],
) -> list[_Step]:
    """The launches that write a level's gradients and the programs' sums.

    Args:
        level: what is computed.
        job: how.
        settings: the definition.
        machine: where.
        new: what the first launch allocates beside its own.
        last: what nothing needs after the last one.
    """
    kernels = _kernels()
    window, low, c1, c2, padding = settings
    # The formulas' luminance is then 1.
    c1 = math.inf if level.contrast else c1
    x, y = level.images
    n, c, height, width = x.shape
    planes, taps = n * c, len(window)
    # Where there is nothing to pass, something that is no other case for the compiler.
    weight = level.weight or x._replace(strides=(0, 0, 0, 0))
    gradient, other = (level.gradients[0], level.gradients[-1]) if level.gradients else (x, x)
    distances = level.distances or level.sums
    across, down, root = _passes(window)
    share = root * root * level.share
    codes = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}
    constants = {
        "TAPS": taps,
        "PADDING": codes[padding].value,
        "WANT": job.want,
        "WEIGHTED": level.weight is not None,
        "DISTANCE": level.distances is not None,
        "DENSE": all(image.dense for image in (*level.images, *level.gradients)),
        "SHARED": machine.shared,
    }
    if job.march is not None:
        cover = job.march
        pitch, rows = _pitch(cover, taps), 2 * (taps + 2 + job.maps)
        programs = cover.programs(planes)
        scratch, kept = _scratch(machine, x, programs * rows * pitch)
        march = _Step(
            *(kernels.march, programs, _warps(cover.lanes), x.at, y.at, weight.at),
            *(gradient.at, other.at, scratch, level.sums, distances, x.strides, y.strides),
            *(weight.strides, gradient.strides, other.strides, level.pitch),
            *(cover.strips, cover.parts, cover.rows, c, height, width),
            *(across, down, root, low, c1, c2, share, level.whole),
            LANES=cover.lanes,
            COLUMNS=cover.columns,
            TURN=cover.turn,
            WHOLE=cover.whole,
            PITCH=pitch,
            new=(*new, *kept),
            last=(*last, *(memory.name for memory in kept)),
            **constants,
        )
        return [march]

    reach = taps - 1 if job.want else 0
    depth = max(slab.bottom - slab.top for slab in job.slabs) + reach
    maps = _New("maps", (job.planes * job.maps * depth * job.pitch,))
    pitches = [_pitch(slab.derive, taps) for slab in job.slabs]
    most = max(
        slab.derive.programs(job.planes) * pitch
        for slab, pitch in zip(job.slabs, pitches, strict=True)
    )
    scratch, kept = _scratch(machine, x, 4 * most)
    kept += [maps] * bool(job.want)
    steps: list[_Step] = []
    done = 0
    for slab, pitch in zip(job.slabs, pitches, strict=True):
        derive, gather = slab.derive, slab.gather
        # A position that belongs to two slabs counts in the first one.
        own_top = slab.top if done else slab.top - reach
        for first in range(0, planes, job.planes):
            here = min(job.planes, planes - first)
            step = _Step(
                *(kernels.derive, derive.programs(here), _warps(derive.lanes)),
                *(x.at, y.at, weight.at),
                *(_At(maps.name) if job.want else x.at, scratch),
                *(level.sums.on(done), distances.on(done), x.strides, y.strides),
                *(weight.strides, level.pitch, job.pitch),
                *(derive.strips, derive.parts, derive.rows, derive.lines(here)),
                *(first, slab.top - reach, slab.bottom, own_top, c, height, width),
                *(across, down, root, low, c1, c2, level.whole),
                LANES=derive.lanes,
                COLUMNS=derive.columns,
                TURN=derive.turn,
                WHOLE=derive.whole,
                PITCH=pitch,
                new=() if steps else (*new, *kept),
                **constants,
            )
            steps.append(step)
            if job.want:
                step = _Step(
                    *(kernels.gather, gather.programs(here), _warps(gather.lanes), x.at, y.at),
                    *(gradient.at, other.at, _At(maps.name), x.strides, y.strides),
                    *(gradient.strides, other.strides, job.pitch),
                    *(gather.strips, gather.parts, gather.rows, first, slab.top, slab.bottom),
                    *(c, height, width, across, down, root, low, share),
                    LANES=gather.lanes,
                    COLUMNS=gather.columns,
                    TURN=gather.turn,
                    WHOLE=gather.whole,
                    DENSE=constants["DENSE"],
                    TAPS=taps,
                    WANT=job.want,
                )
                steps.append(step)
        done += 2 * derive.sums
    steps[-1].last = (*last, *(memory.name for memory in kept))
    return steps


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


def _scratch(machine: Machine, x: _Image, size: int) -> tuple[_At, list[_New]]:
    """Scratch memory of so many values, where programs have no shared memory."""
    if machine.shared:
        # Something that is no other case for the compiler.
        return x.at, []
    return _At("scratch"), [_New("scratch", (size,))]


@functools.lru_cache(maxsize=256)
def _sweep(
    machine: Machine,
    device: torch.device,
    gradients: tuple[_Layout, ...],
    scale: _Layout,
    images: tuple[_Layout, ...],
    usual: float,
) -> _Step:
    """What `sweep` does with gradients like these on that device."""
    fine, *coarse = gradients
    n, c, height, width = fine.shape
    strips = _ceil(width, COLUMNS)
    # No more programs than keep the multiprocessors busy: most have nothing to do.
    bands = min(_ceil(height, ROWS), _ceil(SWEEPERS * machine.multiprocessors, n * c * strips))
    rows = ROWS * _ceil(_ceil(height, ROWS), bands)
    bands = _ceil(height, rows)
    x, y = (
        ((_At("x"), images[0].strides), (_At("y"), images[1].strides))
        if images
        else (
            (_At("level0"), fine.strides),
            (_At("level0"), fine.strides),
        )
    )
    return _Step(
        *(_level_kernels().sweep, n * c * strips * bands, 4, _At("level0")),
        tuple(_At(f"level{j}") for j in range(1, len(gradients))) or (_At("level0"),),
        *(tuple(level.strides[2] for level in coarse) or (0,), _At("scale"), x[0], y[0]),
        *(fine.strides, scale.strides or (0, 0, 0), x[1], y[1]),
        *(strips, bands, rows, c, height, width, usual),
        COARSE=len(coarse),
        ROWS=ROWS,
        LANES=COLUMNS,
        DISTANCE=bool(images),
    )


@functools.lru_cache(maxsize=256)
def _product(
    device: torch.device,
    means: _Layout,
    exponents: tuple[float, ...],
    normalize: str | None,
    reduction: str,
) -> _Step:
    """What `product` does with so many means on that device."""
    kernels = _level_kernels()
    codes = {
        "floor": kernels.FLOOR,
        "relu": kernels.RELU,
        "simple": kernels.SIMPLE,
        None: kernels.PLAIN,
    }
    planes = means.shape[1] * means.shape[2]
    total = reduction != "none"
    programs, warps = (1, 8) if total else (_ceil(planes, PLANES), 1)
    return _Step(
        *(kernels.product, programs, warps, _At("means"), _At("value"), _At("derivatives")),
        *(exponents, FLOOR, planes),
        NORMALIZE=codes[normalize].value,
        LANES=PLANES * warps,
        TOTAL=total,
        LOSS=reduction == "loss",
        new=(
            _New("value", () if total else means.shape[1:]),
            _New("derivatives", means.shape),
        ),
    )


def unscaled(image: Tensor) -> Tensor:
    """Memory for the gradient of an image's mean.

    A pixel's part of that is less than what float16 has, and a loss may be scaled so that it has.
    """
    dtype = torch.float32 if image.dtype == torch.float16 else image.dtype
    return torch.empty_like(image, dtype=dtype)


def in_rows(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for float32 images beside ``image``, in rows that begin at multiples of 16 values.

    That is known to the compiler, makes loads wide and is the same for images of any width.
    """
    return torch.empty_strided(shape, _in_rows(shape), dtype=torch.float32, device=image.device)


def _in_rows(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of `in_rows`."""
    _, channels, height, width = shape
    pitch = 16 * _ceil(width, 16)
    return channels * height * pitch, height * pitch, pitch, 1


def _launch(kernel: Any, programs: int, warps: int, *arguments: Any, **constants: Any) -> Any:
    try:
        return kernel[(programs,)](*arguments, num_warps=warps, **OPTIONS, **constants)
    except (OSError, json.JSONDecodeError) as error:
        raise RuntimeError(
            f"Triton cannot use its cache ({type(error).__name__}: {error}): make room in "
            f"{_cache_folder()}, remove it if it is damaged, or set TRITON_CACHE_DIR to another "
            "folder"
        ) from error


def _cache_folder() -> str:
    from triton import knobs

    return str(knobs.cache.dir)


def _pitch(cover: _Cover, taps: int) -> int:
    """Of a row of scratch memory: the last threads' windows reach beyond the strip."""
    beside = max(1 << max(taps - 2, 1).bit_length(), taps + 2 * cover.columns)
    return cover.lanes * cover.columns + 4 * _ceil(beside, 4)


def _warps(lanes: int) -> int:
    return max(1, lanes // 32)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes a GPU the current one: kernels run there, on its current stream."""
    if device.type in ("cpu", "meta"):
        return _NOTHING
    if device.type == "cuda" and torch.cuda.current_device() == device.index:
        return _NOTHING
    guard: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return guard


_NOTHING = contextlib.nullcontext()


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
