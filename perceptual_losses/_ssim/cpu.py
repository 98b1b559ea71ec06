"""The CPU path: Numba kernels on the threads that torch would use."""

import functools
import importlib.util
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .op import LEVEL, SWEEP, outputs

INSTALLED = importlib.util.find_spec("numba") is not None

# Columns of a task: the rings of a strip stay in a core's second-level cache.
STRIP = 2048
# Rows of a task, at least: a band computes some rows that its neighbours compute too.
BAND = 32


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


def _level(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    window: list[float],
    low: float,
    c1: float,
    c2: float,
    padding: str,
    contrast: bool,
    pool: bool,
    want: int,
) -> tuple[Tensor, ...]:
    kernels = _kernels()
    grad_x, grad_y, half_x, half_y = outputs(x, y, pool, want)
    flat_x, flat_y = _flat(x), _flat(y)
    kind = flat_x.dtype.type
    if weight is None:
        weights = np.empty((0, 0, 0), kind)
    else:
        weights = weight.detach().squeeze(1).contiguous().numpy()
    shape = tuple(x.shape)
    tasks = _tasks(shape, torch.get_num_threads())
    sums = np.empty(len(tasks))
    arguments = (
        *(flat_x, x.stride(), flat_y, y.stride(), weights),
        *(_flat(grad_x), grad_x.stride(), _flat(grad_y), grad_y.stride(), shape),
        tuple(kind(tap) for tap in window),
    )
    code = {"valid": kernels.VALID, "zeros": kernels.ZEROS, "symmetric": kernels.SYMMETRIC}[padding]
    _in_threads(
        lambda begin, end: kernels.run(
            *arguments, tasks[begin:end], low, c1, c2, code, contrast, want, sums[begin:end]
        ),
        len(tasks),
        x.numel(),
    )
    for image, flat, half in ((x, flat_x, half_x), (y, flat_y, half_y)):
        if pool:
            _halve(kernels, image, flat, half)
    mean = sums.reshape(shape[0], shape[1], -1).sum(2)
    if weight is None:
        lost = len(window) - 1 if padding == "valid" else 0
        mean /= (shape[2] - lost) * (shape[3] - lost)
    return torch.from_numpy(mean.astype(kind)), grad_x, grad_y, half_x, half_y


def _halve(kernels: Any, image: Tensor, flat: Any, half: Tensor) -> None:
    shape, out = tuple(image.shape), half.numpy()
    _in_threads(
        lambda begin, end: kernels.halve(flat, image.stride(), shape, begin, end, out),
        out.shape[0] * out.shape[1] * out.shape[2],
        image.numel(),
    )


def _sweep(gradient: Tensor, scale: Tensor, coarse: Tensor) -> None:
    kernels = _kernels()
    flat, shape = _flat(gradient), tuple(gradient.shape)
    scales, coarser = scale.contiguous().numpy(), coarse.contiguous().numpy()
    _in_threads(
        lambda begin, end: kernels.sweep(
            flat, gradient.stride(), shape, scales, coarser, begin, end
        ),
        shape[0] * shape[1] * shape[2],
        gradient.numel(),
    )


def _flat(tensor: Tensor) -> Any:
    """The memory of a tensor from its first element to its last, as an array."""
    tensor = tensor.detach()
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.as_strided([reach + 1 if tensor.numel() else 0], [1]).numpy()


@functools.lru_cache(maxsize=32)
def _tasks(shape: tuple[int, ...], threads: int) -> Any:
    """Rows ``(n, c, top, bottom, left, right)`` that cover all planes, evenly for the threads."""
    batch, channels, height, width = shape
    strips = -(-width // STRIP)
    bands = 1
    while batch * channels * strips * bands % threads and height // (bands + 1) >= BAND:
        bands += 1
    rows = np.linspace(0, height, bands + 1).astype(np.int64)
    columns = np.linspace(0, width, strips + 1).astype(np.int64)
    return np.array(
        [
            (n, c, rows[i], rows[i + 1], columns[j], columns[j + 1])
            for n in range(batch)
            for c in range(channels)
            for i in range(bands)
            for j in range(strips)
        ],
        dtype=np.int64,
    )


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


torch.library.impl(LEVEL, "CPU", _level)
torch.library.impl(SWEEP, "CPU", _sweep)
