"""The CPU path: Numba kernels on the threads that torch would use."""

import functools
import importlib.util
import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._runtime.threads import cut, in_threads
from ..definition import FLOOR, Result, Settings, X, Y, usual_scale
from ..pyramid import halved, spread

INSTALLED = importlib.util.find_spec("numba") is not None

# Columns of a task: the rings of a strip stay in a core's second-level cache.
STRIP = 2048
# Columns of narrow planes in one task: what a row costs besides its columns is shared.
SIDE_BY_SIDE = 768
# Rows and columns of a task in a volume, whose rings of slices take a few megabytes.
BLOCK = 64, 246
# Rows of a task, or slices, at least: a band computes some rows that its neighbours compute too.
BAND = 32
# A pixel that is marched over costs as much as so many that are halved or swept.
LIGHT = 16

_own = threading.local()


@functools.cache
def _kernels() -> Any:
    from . import kernels

    return kernels


def refuses(x: Tensor, y: Tensor, settings: Settings) -> str | None:
    """Why the path is not for these images, or ``None``."""
    return None if x.device.type == "cpu" else f"the images are on {x.device} and it runs on CPUs"


def missing(device: torch.device) -> str | None:
    """What the path would need to run, or ``None``."""
    if not INSTALLED:
        return "Numba is not installed"
    # A compiled call takes it that what is installed can be imported: importing is not traced.
    return None if torch.compiler.is_compiling() else _broken()


@functools.cache
def _broken() -> str | None:
    try:
        _kernels()
    except Exception as error:  # Whatever a broken installation raises is the reason.
        return f"Numba cannot be used ({type(error).__name__}: {error})"
    return None


def means(
    x: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    window: Sequence[float],
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
    kernels = _kernels()
    pyramid: list[tuple[Tensor, ...]] = [(x, y)]
    while len(pyramid) < levels:
        pyramid.append(_halve(kernels, *pyramid[-1]))
    found: list[Tensor] = []
    grad_x: list[Tensor] = []
    grad_y: list[Tensor] = []
    structural, l1 = mix or (1, 0)
    pixels = x.shape[0] * x.shape[1] * math.prod(x.shape[2:])
    signs = l1 / pixels if mix and want else None
    distances = None
    # From the coarsest up, each pair gone before the next gradient comes: a step takes little
    # more memory than its gradients.
    for level in reversed(range(levels)):
        x, y = pyramid.pop()
        nothing = x.new_empty([0] * x.dim())
        if want & X:
            grad_x.append(torch.empty_like(x))
        if want & Y:
            grad_y.append(torch.empty_like(y))
        gradients = (grad_x or [nothing])[-1], (grad_y or [nothing])[-1]
        weight = weights[level] if weights else None
        contrast = level < levels - 1
        constants = low, c1, c2, structural * usual_scale(x.shape)
        mirrored = True if padding == "symmetric" else None
        modes = getattr(kernels, padding.upper()), mirrored, contrast, want
        mean, distances = _march(kernels, x, y, *gradients, weight, window, constants, modes, signs)
        found.append(mean)
    if not mix:
        last_row = [_distance(kernels, x, y)] if distance else []
        value = Result(reduction).of(torch.stack(found[::-1] + last_row), None)
        return value, grad_x[::-1], grad_y[::-1]
    if distances is None:
        distances = _distance(kernels, x, y)
    return Result(reduction, mix=tuple(mix)).of(found[0], distances), grad_x, grad_y


def _march(
    kernels: Any,
    x: Tensor,
    y: Tensor,
    grad_x: Tensor,
    grad_y: Tensor,
    weight: Tensor | None,
    window: Sequence[float],
    constants: tuple[float, ...],
    modes: tuple[int, bool | None, bool, int],
    signs: float | None,
) -> tuple[Tensor, Tensor | None]:
    """The means of one level, and its gradients into those given; with what ``signs`` of
    differences are multiplied with in those of a mix, the means of ``|x - y|`` too.
    """
    shape, length = tuple(x.shape), len(window)
    split, march = (_tasks, kernels.march) if x.dim() == 4 else (_blocks, kernels.march_volume)
    tasks, scratch, parts = split(shape, length, torch.get_num_threads())
    images = [_image(kernels, tensor) for tensor in (x, y, grad_x, grad_y)]
    kind = images[0].flat.dtype
    weights = None if weight is None else weight.squeeze(1).contiguous().numpy()
    extent, taps = (0,) * length, np.array(window, kind)
    numbers = tuple(map(kind.type, constants))
    sums = np.empty((shape[0] * shape[1], parts))
    distances = np.empty_like(sums)
    l1 = None if signs is None else kind.type(signs)
    memory = _kept()

    def run(begin: int, end: int, share: int) -> None:
        march(
            *images, weights, shape, extent, taps, *numbers, l1, *modes, tasks[begin:end],
            *_scratch(memory, share, scratch, kind), sums, distances,
        )  # fmt: skip

    in_threads(run, len(tasks), x.numel())
    mean = sums.sum(1).reshape(shape[:2])
    if weight is None:
        lost = length - 1 if modes[0] == kernels.VALID else 0
        mean /= math.prod(side - lost for side in shape[2:])
    else:
        mean += 1
    if signs is None:
        return torch.from_numpy(mean.astype(kind)), None
    distance = distances.sum(1).reshape(shape[:2]) / math.prod(shape[2:])
    return torch.from_numpy(mean.astype(kind)), torch.from_numpy(distance.astype(kind))


def _kept() -> dict[int, Any]:
    """This thread's memory for the shares of its calls.

    Kept from call to call: the system takes long to hand out and clear new pages.
    """
    if not hasattr(_own, "memory"):
        _own.memory = {}
    memory: dict[int, Any] = _own.memory
    return memory


def _scratch(
    memory: dict[int, Any], share: int, shapes: Sequence[tuple[int, int]], kind: Any
) -> list[Any]:
    """Arrays with what was in them, for a share alone.

    Rows lie an odd number of cache lines apart, so that those of a ring are in different sets of
    the cache.
    """
    line = 64 // kind.itemsize
    shapes = [(count, (-(-columns // line) | 1) * line) for count, columns in shapes]
    size = 64 + kind.itemsize * sum(map(math.prod, shapes))
    if share not in memory or memory[share].size < size:
        memory[share] = np.zeros(size, np.uint8)
    begin = -memory[share].ctypes.data % 64
    views = []
    for shape in shapes:
        end = begin + kind.itemsize * math.prod(shape)
        views.append(memory[share][begin:end].view(kind).reshape(shape))
        begin = end
    return views


def _halve(kernels: Any, *images: Tensor) -> tuple[Tensor, ...]:
    if images[0].dim() == 5:
        return tuple(torch.nn.functional.avg_pool3d(i, 2, ceil_mode=True) for i in images)
    shape = tuple(images[0].shape)
    halves = tuple(image.new_empty(halved(shape)) for image in images)
    flats = [_image(kernels, image) for image in images]
    outs = [half.flatten(0, 1).numpy() for half in halves]
    memory = _kept()

    def run(begin: int, end: int, share: int) -> None:
        (rows,) = _scratch(memory, share, [(2, shape[3])], outs[0].dtype)
        for flat, out in zip(flats, outs, strict=True):
            kernels.halve(flat, shape, begin, end, rows, out)

    in_threads(run, outs[0].shape[0] * outs[0].shape[1], len(images) * images[0].numel() // LIGHT)
    return halves


def _distance(kernels: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean of ``|x - y|`` over each plane, a volume's slices being one."""
    images, (height, width) = [_image(kernels, image) for image in (x, y)], x.shape[-2:]
    sums = np.empty(x.numel() // width)
    in_threads(
        lambda begin, end, share: kernels.distance(*images, height, width, begin, end, sums),
        len(sums),
        x.numel() // LIGHT,
    )
    mean = sums.reshape(*x.shape[:2], -1).sum(2) / math.prod(x.shape[2:])
    return torch.from_numpy(mean).to(x.dtype)


def sweep(
    gradients: list[Tensor],
    scale: Tensor,
    derivatives: list[Tensor],
    images: list[Tensor],
    usual: float,
) -> None:
    for derivative in derivatives:
        scale = scale * derivative
    if scale.dim() < 3:
        scale = scale.expand(1, *gradients[0].shape[:2])
    factors = scale / usual
    if len(gradients) > 1 or (scale[0] != usual).any():
        _multiply(gradients[-1], factors[len(gradients) - 1])
    for level in reversed(range(len(gradients) - 1)):
        if gradients[level].dim() == 5:
            _multiply(gradients[level], factors[level])
            # As the kernels write: autograd does not see it, and the operation knows what is spent.
            gradients[level].data.add_(spread(gradients[level + 1], gradients[level].shape))
        else:
            _sweep_level(gradients[level], factors[level], gradients[level + 1])
    if images:
        x, y = images
        _add_sign(gradients[0], x, y, scale[-1])


def product(
    means: Tensor,
    exponents: Sequence[float],
    normalize: str | None,
    reduction: str,
    mix: Sequence[float],
) -> tuple[Tensor, Tensor]:
    levels = len(exponents)
    bases = means[:levels].numpy()
    slopes = np.ones_like(bases)
    powers = np.asarray(exponents, bases.dtype)[:, None, None]
    dead = np.zeros(bases.shape, bool)
    with np.errstate(all="ignore"):
        if normalize == "floor":
            low = bases <= FLOOR
            below = FLOOR**2 / (2 * FLOOR - np.minimum(bases, FLOOR))
            slopes = np.where(low, (below / FLOOR) ** 2, slopes)
            bases = np.where(low, below, bases)
        elif normalize == "simple":
            bases, slopes = (bases + 1) / 2, slopes / 2
        elif normalize == "relu":
            dead = bases <= 0
            bases = np.where(dead, 1, bases)
        factors = np.where(dead, 0, bases**powers)
        derivatives = np.where(dead | (powers == 0), 0, powers * bases ** (powers - 1) * slopes)
    # Not the whole product divided by a factor, which can be zero.
    others = np.repeat(factors[None], levels, 0)
    each = np.arange(levels)
    others[each, each] = derivatives
    products, by_means = torch.from_numpy(factors.prod(0)), torch.from_numpy(others.prod(1))
    result = Result(reduction, mix=tuple(mix))
    if not mix:
        return result.of(products, None), by_means
    structural, l1 = mix
    share = l1 if reduction == "none" else l1 / products.numel()
    last_row = torch.full_like(means[levels:], share)
    return result.of(products, means[levels]), torch.cat([structural * by_means, last_row])


def _add_sign(gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> None:
    """Adds the gradient of the distance with respect to ``x``."""
    kernels = _kernels()
    images, (height, width) = [_image(kernels, image) for image in (gradient, x, y)], x.shape[-2:]
    shares = (scale / math.prod(x.shape[2:])).flatten()
    # Of each plane, a volume's slices in turn.
    scales = shares.repeat_interleave(math.prod(x.shape[2:-2])).numpy()
    in_threads(
        lambda begin, end, share: kernels.add_sign(*images, scales, height, width, begin, end),
        x.numel() // width,
        x.numel() // LIGHT,
    )


def _multiply(gradient: Tensor, scale: Tensor) -> None:
    """Each plane by its number."""
    array = gradient.detach().numpy()
    factors = scale.reshape(*scale.shape, *[1] * (gradient.dim() - 2)).numpy()

    def run(begin: int, end: int, share: int) -> None:
        rows = array[:, :, begin:end]
        # NumPy warns of what torch computes without a word.
        with np.errstate(all="ignore"):
            np.multiply(rows, factors, out=rows)

    in_threads(run, gradient.shape[2], gradient.numel() // LIGHT)


def _sweep_level(gradient: Tensor, scale: Tensor, coarse: Tensor) -> None:
    kernels = _kernels()
    image, shape = _image(kernels, gradient), tuple(gradient.shape)
    scales = scale.reshape(-1).contiguous().numpy()
    coarser = coarse.flatten(0, 1).numpy()
    memory = _kept()

    def run(begin: int, end: int, share: int) -> None:
        (rows,) = _scratch(memory, share, [(1, shape[3])], scales.dtype)
        kernels.sweep(image, shape, scales, coarser, begin, end, rows[0])

    in_threads(run, shape[0] * shape[1] * shape[2], gradient.numel() // LIGHT)


def _image(kernels: Any, tensor: Tensor) -> Any:
    """The memory of a tensor from its first element to its last, and where its planes begin."""
    tensor = tensor.detach()
    shape, strides = tensor.shape, tensor.stride()
    reach = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    flat = tensor.as_strided([reach + 1 if tensor.numel() else 0], [1]).numpy()
    starts = np.zeros(1, np.int64)
    for size, step in zip(shape[:-2], strides[:-2], strict=True):
        starts = np.add.outer(starts, np.arange(size) * step).ravel()
    return kernels.Image(flat, starts, *strides[-2:])


Tasks = tuple[Any, list[tuple[int, int]], int]


@functools.lru_cache(maxsize=32)
def _tasks(shape: tuple[int, ...], length: int, threads: int) -> Tasks:
    """What the threads share: all planes, evenly.

    Returns:
        Tasks for `march`, the scratch that the widest of them needs, and the number of parts of a
        plane.
    """
    total, (height, width) = shape[0] * shape[1], shape[2:]
    # Windows reach out of a strip, and beyond them the pixels in them.
    beside = 4 * (length // 2)
    strips = -(-width // STRIP)
    planes = max(1, min(SIDE_BY_SIDE // (width + beside), total // threads))
    bands = 1
    while -(-total // planes) * strips * bands % threads and height // (bands + 1) >= BAND:
        bands += 1
    tasks = [
        (p, min(planes, total - p), part, *rows, *columns)
        for p in range(0, total, planes)
        for part, (rows, columns) in enumerate(
            itertools.product(cut(height, bands), cut(width, strips))
        )
    ]
    widest = planes * (-(-width // strips) + beside)
    rows = 10 * (length + 1) + 26
    return np.array(tasks), [(rows, _whole_steps(widest) + length)], bands * strips


@functools.lru_cache(maxsize=32)
def _blocks(shape: tuple[int, ...], length: int, threads: int) -> Tasks:
    """`_tasks` for volumes and `march_volume`."""
    total, (depth, height, width) = shape[0] * shape[1], shape[2:]
    beside = 2 * (length // 2)
    bands, strips = -(-height // BLOCK[0]), -(-width // BLOCK[1])
    layers = 1
    while total * bands * strips * layers % threads and depth // (layers + 1) >= BAND:
        layers += 1
    tasks = [
        (volume, part, *slices, *rows, *columns)
        for volume in range(total)
        for part, (slices, rows, columns) in enumerate(
            itertools.product(cut(depth, layers), cut(height, bands), cut(width, strips))
        )
    ]
    wide = _whole_steps(-(-width // strips) + beside)
    area = (-(-height // bands) + beside + 2) * wide
    slots = length + 1
    rows = (6 + 4 * slots, wide + 2 * length), (8 * slots + 24, area)
    return np.array(tasks), [*rows], layers * bands * strips


def _whole_steps(columns: int) -> int:
    """Loops are compiled for steps of 64 values: whole steps are faster than a rest."""
    return -(-columns // 64) * 64
