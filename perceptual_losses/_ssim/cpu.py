"""The CPU path: Numba kernels on the threads that torch would use."""

import functools
import importlib.util
import itertools
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contract import Settings, X, Y, halved, spread

INSTALLED = importlib.util.find_spec("numba") is not None

# Columns of a task: the rings of a strip stay in a core's second-level cache.
STRIP = 2048
# Columns of narrow planes in one task: what a row costs besides its columns is shared.
SIDE_BY_SIDE = 768
# Rows and columns of a task in a volume, whose rings of slices take a few megabytes.
BLOCK = 64, 246
# Rows of a task, or slices, at least: a band computes some rows that its neighbours compute too.
BAND = 32


_own = threading.local()


@functools.cache
def _kernels() -> Any:
    from . import cpu_kernels

    return cpu_kernels


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
    want: int,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    kernels = _kernels()
    pyramid = [(x, y)]
    while len(pyramid) < levels:
        x, y = pyramid[-1]
        pyramid.append((_halve(kernels, x), _halve(kernels, y)))
    found: list[Tensor] = []
    grad_x: list[Tensor] = []
    grad_y: list[Tensor] = []
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
        constants = low, c1, c2
        modes = getattr(kernels, padding.upper()), contrast, want
        found.append(_march(kernels, x, y, *gradients, weight, window, constants, modes))
    return torch.stack(found[::-1]), grad_x[::-1], grad_y[::-1]


def _march(
    kernels: Any,
    x: Tensor,
    y: Tensor,
    grad_x: Tensor,
    grad_y: Tensor,
    weight: Tensor | None,
    window: Sequence[float],
    constants: tuple[float, float, float],
    modes: tuple[int, bool, int],
) -> Tensor:
    """The means of one level, and its gradients into those given."""
    shape, length = tuple(x.shape), len(window)
    split, march = (_tasks, kernels.march) if x.dim() == 4 else (_blocks, kernels.march_volume)
    tasks, scratch, parts = split(shape, length, torch.get_num_threads())
    images = [_image(kernels, tensor) for tensor in (x, y, grad_x, grad_y)]
    kind = images[0].flat.dtype
    if weight is None:
        weights = np.empty([0] * (x.dim() - 1), kind)
    else:
        weights = weight.squeeze(1).contiguous().numpy()
    extent, taps = (0,) * length, np.array(window, kind)
    numbers = tuple(map(kind.type, constants))
    sums = np.empty((shape[0] * shape[1], parts))

    def run(begin: int, end: int) -> None:
        march(
            *images, weights, shape, extent, taps, *numbers, *modes, tasks[begin:end],
            *_scratch(scratch, kind), sums,
        )  # fmt: skip

    _in_threads(run, len(tasks), x.numel())
    mean = sums.sum(1).reshape(shape[:2])
    if weight is None:
        lost = length - 1 if modes[0] == kernels.VALID else 0
        mean /= math.prod(side - lost for side in shape[2:])
    return torch.from_numpy(mean.astype(kind))


def _scratch(shapes: Sequence[tuple[int, int]], kind: Any) -> list[Any]:
    """Arrays with what was in them, for this thread alone.

    Kept from call to call: the system takes long to hand out and clear new pages. Rows lie an odd
    number of cache lines apart, so that those of a ring are in different sets of the cache.
    """
    line = 64 // kind.itemsize
    shapes = [(count, (-(-columns // line) | 1) * line) for count, columns in shapes]
    size = 64 + kind.itemsize * sum(map(math.prod, shapes))
    if not hasattr(_own, "memory") or _own.memory.size < size:
        _own.memory = np.zeros(size, np.uint8)
    begin = -_own.memory.ctypes.data % 64
    flat = _own.memory[begin : begin + size - 64].view(kind)
    bounds = np.cumsum([math.prod(shape) for shape in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, bounds), shapes, strict=True)]


def _halve(kernels: Any, image: Tensor) -> Tensor:
    if image.dim() == 5:
        return torch.nn.functional.avg_pool3d(image, 2, ceil_mode=True)
    half = image.new_empty(halved(image.shape))
    flat, shape, out = _image(kernels, image), tuple(image.shape), half.flatten(0, 1).numpy()
    _in_threads(
        lambda begin, end: kernels.halve(
            flat, shape, begin, end, *_scratch([(2, shape[3])], out.dtype), out
        ),
        out.shape[0] * out.shape[1],
        image.numel(),
    )
    return half


def sweep(gradients: list[Tensor], scale: Tensor) -> None:
    kernels = _kernels()
    if gradients[0].dim() == 5:
        # As the kernels write: autograd does not see it, and the operation knows what is spent.
        arrays = [gradient.data for gradient in gradients]
        for level in reversed(range(len(arrays))):
            arrays[level].mul_(scale[level, ..., None, None, None])
            if level < len(arrays) - 1:
                arrays[level].add_(spread(arrays[level + 1], arrays[level].shape))
        return
    scales = scale.flatten(1).contiguous().numpy()
    coarse = np.empty((0, 0, 0), scales.dtype)
    for level in reversed(range(len(gradients))):
        if level < len(gradients) - 1:
            coarse = gradients[level + 1].flatten(0, 1).numpy()
        _sweep_level(kernels, gradients[level], scales[level], coarse)


def _sweep_level(kernels: Any, gradient: Tensor, scale: Any, coarse: Any) -> None:
    image, shape = _image(kernels, gradient), tuple(gradient.shape)
    _in_threads(
        lambda begin, end: kernels.sweep(
            image, shape, scale, coarse, begin, end, *_scratch([(2, shape[3])], scale.dtype)
        ),
        shape[0] * shape[1] * shape[2],
        gradient.numel(),
    )


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
            itertools.product(_cut(height, bands), _cut(width, strips))
        )
    ]
    widest = planes * (-(-width // strips) + beside)
    rows = 10 * (length + 1) + 28
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
            itertools.product(_cut(depth, layers), _cut(height, bands), _cut(width, strips))
        )
    ]
    wide = _whole_steps(-(-width // strips) + beside)
    area = (-(-height // bands) + beside + 2) * wide
    slots = length + 1
    rows = (8 + 4 * slots, wide + 2 * length), (8 * slots + 24, area)
    return np.array(tasks), [*rows], layers * bands * strips


def _cut(size: int, parts: int) -> list[tuple[int, int]]:
    """Begin and end of each of the parts, as equal as they can be."""
    return list(itertools.pairwise(size * i // parts for i in range(parts + 1)))


def _whole_steps(columns: int) -> int:
    """Loops are compiled for steps of 64 values: whole steps are faster than a rest."""
    return -(-columns // 64) * 64


def _in_threads(run: Any, count: int, pixels: int) -> None:
    """Calls ``run(begin, end)`` for shares of ``range(count)``, each on a thread."""
    # Handing over work takes as long as a few thousand pixels.
    threads = min(torch.get_num_threads(), count, max(1, pixels // 8192))
    first, *rest = _cut(count, threads)
    others = [_pool(threads - 1).submit(run, *share) for share in rest]
    run(*first)
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="perceptual_losses")


# The threads of a pool do not live on in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
