"""The CPU path: Numba kernels on the threads that torch would use."""

import functools
import importlib.util
import itertools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .op import MEANS, SWEEP, X, Y, halved

INSTALLED = importlib.util.find_spec("numba") is not None

# Columns of a task: the rings of a strip stay in a core's second-level cache.
STRIP = 2048
# Columns of narrow planes in one task: what a row costs besides its columns is shared.
SIDE_BY_SIDE = 768
# Rows of a task, at least: a band computes some rows that its neighbours compute too.
BAND = 32


_own = threading.local()


@functools.cache
def _kernels() -> Any:
    from . import cpu_kernels

    return cpu_kernels


@functools.cache
def broken() -> str | None:
    """Why the kernels cannot be imported, or ``None``."""
    try:
        _kernels()
    except Exception as error:  # Whatever a broken installation raises is the reason.
        return f"Numba cannot be used ({type(error).__name__}: {error})"
    return None


def _means(
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
    tasks, columns, parts = _tasks(shape, length, torch.get_num_threads())
    images = [_image(kernels, tensor) for tensor in (x, y, grad_x, grad_y)]
    kind = images[0].flat.dtype
    weights = (
        np.empty((0, 0, 0), kind) if weight is None else weight.squeeze(1).contiguous().numpy()
    )
    extent, taps = (0,) * length, np.array(window, kind)
    numbers = tuple(map(kind.type, constants))
    sums = np.empty((shape[0] * shape[1], parts))

    def run(begin: int, end: int) -> None:
        rows = _scratch(kernels.scratch_shape(length, columns, kind.itemsize), kind)
        share = tasks[begin:end]
        kernels.march(*images, weights, shape, extent, taps, *numbers, *modes, share, rows, sums)

    _in_threads(run, len(tasks), x.numel())
    mean = sums.sum(1).reshape(shape[:2])
    if weight is None:
        lost = length - 1 if modes[0] == kernels.VALID else 0
        mean /= (shape[2] - lost) * (shape[3] - lost)
    return torch.from_numpy(mean.astype(kind))


def _scratch(shape: tuple[int, int], kind: Any) -> Any:
    """An array with what was in it, at the begin of a cache line, for this thread alone.

    Kept from call to call: the system takes long to hand out and clear new pages.
    """
    size = shape[0] * shape[1] * kind.itemsize
    if not hasattr(_own, "memory") or _own.memory.size < size + 64:
        _own.memory = np.zeros(size + 64, np.uint8)
    begin = -_own.memory.ctypes.data % 64
    return _own.memory[begin : begin + size].view(kind).reshape(shape)


def _halve(kernels: Any, image: Tensor) -> Tensor:
    half = image.new_empty(halved(image.shape))
    flat, shape, out = _image(kernels, image), tuple(image.shape), half.flatten(0, 1).numpy()
    _in_threads(
        lambda begin, end: kernels.halve(
            flat, shape, begin, end, _scratch((2, shape[3]), out.dtype), out
        ),
        out.shape[0] * out.shape[1],
        image.numel(),
    )
    return half


def _sweep(gradients: list[Tensor], scale: Tensor) -> None:
    kernels = _kernels()
    scales = scale.flatten(1).contiguous().numpy()
    coarse = np.empty((0, 0, 0), scales.dtype)
    for gradient, factors in zip(gradients[::-1], scales[::-1], strict=True):
        _sweep_level(kernels, gradient, factors, coarse)
        coarse = gradient.flatten(0, 1).numpy()


def _sweep_level(kernels: Any, gradient: Tensor, scale: Any, coarse: Any) -> None:
    image, shape = _image(kernels, gradient), tuple(gradient.shape)
    _in_threads(
        lambda begin, end: kernels.sweep(
            image, shape, scale, coarse, begin, end, _scratch((2, shape[3]), scale.dtype)
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
    starts = np.add.outer(np.arange(shape[0]) * strides[0], np.arange(shape[1]) * strides[1])
    return kernels.Image(flat, starts.ravel(), strides[2], strides[3])


@functools.lru_cache(maxsize=32)
def _tasks(shape: tuple[int, ...], length: int, threads: int) -> tuple[Any, int, int]:
    """What the threads share: all planes, evenly.

    Returns:
        Rows ``(plane, planes, part, top, bottom, left, right)``, the columns that the widest of
        them needs, and the number of parts of a plane.
    """
    total, (height, width) = shape[0] * shape[1], shape[2:]
    # A strip's neighbours' windows reach into it, and pixels into them.
    beside = 4 * (length // 2)
    strips = -(-width // STRIP)
    planes = max(1, min(SIDE_BY_SIDE // (width + beside), total // threads))
    bands = 1
    while -(-total // planes) * strips * bands % threads and height // (bands + 1) >= BAND:
        bands += 1
    rows = np.linspace(0, height, bands + 1).astype(np.int64)
    columns = np.linspace(0, width, strips + 1).astype(np.int64)
    tasks = [
        (
            p,
            min(planes, total - p),
            i * strips + j,
            rows[i],
            rows[i + 1],
            columns[j],
            columns[j + 1],
        )
        for p in range(0, total, planes)
        for i in range(bands)
        for j in range(strips)
    ]
    widest = planes * (-(-width // strips) + beside)
    return np.array(tasks, dtype=np.int64), -(-widest // 64) * 64, bands * strips


def _in_threads(run: Any, count: int, pixels: int) -> None:
    """Calls ``run(begin, end)`` for shares of ``range(count)``, each on a thread."""
    # Handing over work takes as long as a few thousand pixels.
    threads = min(torch.get_num_threads(), count, max(1, pixels // 8192))
    bounds = [count * i // threads for i in range(threads + 1)]
    shares = itertools.pairwise(bounds[1:])
    others = [_pool(threads - 1).submit(run, *share) for share in shares]
    run(0, bounds[1])
    for other in others:
        other.result()


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="perceptual_losses")


# The threads of a pool do not live on in a forked process.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


torch.library.impl(MEANS, "CPU", _means)
torch.library.impl(SWEEP, "CPU", _sweep)
