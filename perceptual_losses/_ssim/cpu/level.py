"""One level of the pyramid on a CPU: the kernels that run on images of its shape."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._runtime.threads import in_threads
from ..pyramid import halve_valid, halve_valid_transpose
from ..request import Request, plane_gradient
from .tasks import Tasks, kept_memory, tasks_for_images, tasks_for_volumes

# The march takes as long for one pixel as the other kernels of a level take for 16.
LIGHT = 16
# The most addresses that are remembered for each layout.
_ADDRESSES = 64


class AuxiliaryArrays(NamedTuple):
    """The arrays of a march beside its images, each of which may be ``None``.

    Attributes:
        map_weights: the weights of the map's values, as an `Image` of the kernels. If there are
            only factors, the valid pixels are the weights.
        weight_factors: the factor of each image's weights.
        ranges: the range of each image.
        valid: the pixels that exist.
        map_out: memory that the march writes the map to.
        coverage: the reciprocal of the windows' weight over valid pixels. Only the march for
            volumes takes it; that for images computes it.
    """

    map_weights: Any = None
    weight_factors: Any = None
    ranges: Any = None
    valid: Any = None
    map_out: Any = None
    coverage: Any = None


NO_ARRAYS = AuxiliaryArrays()

# A function that makes an `Image` of the kernels from a tensor.
Reader = Callable[[Tensor], Any]


class Pair(NamedTuple):
    """Both images of a level.

    Attributes:
        tensors: the first and the second image; they keep their memory alive.
        images: both as `Level.images` makes them; they do not.
    """

    tensors: Sequence[Tensor]
    images: Sequence[Any]


class Sums(NamedTuple):
    """The sums that a march leaves, with a row for each plane and a column for each of its tasks.

    Attributes:
        similarity: the sum of the map over each task's part of the plane; of a map with weights
            the sum of the weighted deficits ``weights (SSIM - 1)``.
        ssim: the same sum of SSIM, where both are requested or the map is that of SSIM; not
            meaningful otherwise.
        abs_difference: the sum of ``|x - y|`` over the same part, or ``None``. Only a march that
            writes gradients of a mix computes it.
        is_weighted: whether the map has weights.
    """

    similarity: Any
    ssim: Any
    abs_difference: Any
    is_weighted: bool


class Level:
    """The kernels of a level, with the arguments that only its shape and the request decide.

    For a small image the march takes less time than torch, NumPy and Numba take around it. So
    images are read at their addresses, and Numba looks at the types of the arguments only once.
    Readers remember the arrays that they make, which depend on address and layout only. These are
    not to be printed: their memory may be gone.

    Several threads may use a level at once. It remembers the compiled march, the tasks for each
    number of threads, and a reader for each layout of a tensor. Threads that add one of these at
    the same time add equal ones.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        request: Request,
        dtype: Any,
        contrast: bool,
        mix: tuple[float, float] | None,
    ) -> None:
        """Prepares the kernels' arguments.

        Args:
            shape: the shape of the level's images.
            request: the request.
            dtype: the NumPy dtype of all computation, and of images unless they are bytes.
            contrast: whether the mean is that of the contrast-structure factor, not of SSIM.
            mix: the weights of ``1 - SSIM`` and of the mean ``|x - y|`` if the stored gradients are
                those of a mix.
        """
        # Not at the top: importing the package does not import Numba.
        from . import kernels

        self.shape, self.dtype, self._kernels = shape, dtype, kernels
        # Tensors in the dtype of the computation are allocated like this one.
        self._empty = torch.from_numpy(np.empty(0, dtype))
        windows, low, length, c1, c2, padding, _ = request.definition
        sides = shape[2:]
        self._window_sizes = [len(window) for window in windows]
        if padding == "valid":
            sides = tuple(
                side - size + 1 for side, size in zip(sides, self._window_sizes, strict=True)
            )
        self.map_shape = (*shape[:2], *sides)
        self._map_size = math.prod(sides)
        self._planes, self._pixels = math.prod(shape[:2]), math.prod(shape[2:])
        self._rows, self._values = math.prod(shape[:-1]), math.prod(shape)
        self._is_volume = len(shape) == 5
        # Slices, height and width; an image has one slice.
        self._size = shape[2:] if self._is_volume else (1, *shape[2:])
        self._march = self._kernels.march_volume if self._is_volume else self._kernels.march
        self._tasks_for = tasks_for_volumes if self._is_volume else tasks_for_images
        # A map's march gets the upstream gradient as weights: nothing is premultiplied.
        structural = 1.0 if mix is None else mix[0]
        scale = 1.0 if request.reduction == "map" else structural * plane_gradient(shape)
        constants = low, length, c1, c2, scale, np.finfo(dtype).tiny
        l1 = None
        if mix is not None and request.gradients:
            l1 = dtype.type(mix[1] / self._values)
        self._sums_both = contrast and request.reduction == "both"
        self._has_l1 = l1 is not None
        self._arguments = (
            shape,
            *[self._kernels.Window((0,) * len(w), np.array(w, dtype)) for w in windows],
            self._kernels.Constants(*map(dtype.type, constants)),
            l1,
            self._kernels.Variant(
                getattr(self._kernels, padding.upper()),
                contrast,
                self._sums_both,
                request.gradients,
            ),
        )
        self._tasks: dict[int, Tasks] = {}
        self._readers: dict[tuple[Any, ...], Reader] = {}
        # The first march puts the compiled one in its place.
        self._run_march: Callable[..., None] = self._first_march

    def images(self, *tensors: Tensor) -> list[Any]:
        """Tensors with any strides, each as an `Image` of the kernels.

        An `Image` is an address and does not keep the memory alive: the caller holds the tensors
        until the kernel has returned.
        """
        images = []
        for tensor in tensors:
            layout = tensor.dtype, tensor.shape, tensor.stride()
            reader = self._readers.get(layout)
            if reader is None:
                reader = self._readers[layout] = self._make_reader(*layout)
            images.append(reader(tensor))
        return images

    def _make_reader(
        self, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]
    ) -> Reader:
        """The reader of tensors with this layout."""
        length, starts = _places(shape, strides)
        kind = np.dtype(str(dtype).removeprefix("torch."))
        memory_at = (ctypes.c_char * (length * kind.itemsize)).from_address
        row, column = strides[-2:]
        image, array = self._kernels.Image, np.ndarray
        # Torch hands out the same memory again and again.
        known: dict[int, Any] = {}

        def read(tensor: Tensor) -> Any:
            address = tensor.data_ptr()
            found = known.get(address)
            if found is not None:
                return found
            if not address:
                tensor.detach().numpy()  # Torch's error says it of a ZeroTensor.
                raise ValueError("the memory of an image was freed: pass a tensor that has its own")
            memory: Any = memory_at(address)
            if len(known) >= _ADDRESSES:
                known.clear()
            found = known[address] = image(array(length, kind, memory), starts, row, column)
            return found

        return read

    def new_map(self) -> Tensor:
        """Memory for the map, in the dtype of the computation."""
        return self._empty.new_empty(self.map_shape)

    def march(
        self,
        images: Sequence[Any],
        gradients: Sequence[Tensor],
        arrays: AuxiliaryArrays = NO_ARRAYS,
    ) -> Sums:
        """Sums the map of each plane, and writes the premultiplied gradients.

        The first march is compiled for the types of its arguments. Later ones have the same types,
        because a plan is for calls with the same tensors in the same dtypes.
        """
        tasks = self._tasks_of(torch.get_num_threads())
        # In place of a gradient that is not requested the kernel gets an image, and leaves it.
        images = *images, *self.images(*gradients), *images[len(gradients) :]
        sums = np.empty((3, self._planes, tasks.parts))
        memory = kept_memory()
        # The last is the coverage, which the march for images computes itself.
        beside = arrays if self._is_volume else arrays[:-1]

        def run(begin: int, end: int, share: int) -> None:
            self._run_march(
                *images, *beside, *self._arguments, tasks.tasks[begin:end],
                *tasks.scratch.arrays(memory, share), sums,
            )  # fmt: skip

        in_threads(run, len(tasks.tasks), self._values)
        is_weighted = arrays.weight_factors is not None
        ssim = sums[1] if self._sums_both else sums[0]
        return Sums(sums[0], ssim, sums[2] if self._has_l1 else None, is_weighted)

    def _first_march(self, *arguments: Any) -> None:
        """Compiles the march for the types of its arguments, and runs it."""
        # Not at the top: importing the package does not import Numba.
        from ..._runtime import numba_kernels

        compile_for: Any = numba_kernels.compiled_for
        self._run_march = compile_for(self._march, arguments)
        self._run_march(*arguments)

    def mean_similarity(self, sums: Sums) -> float:
        """The mean similarity of all planes."""
        total = _total(sums.similarity)
        if sums.is_weighted:
            return 1 + total / self._planes
        return total / (self._planes * self._map_size)

    def plane_similarities(self, sums: Sums) -> Any:
        """The mean similarity of each plane, in float64."""
        totals = np.add.reduce(sums.similarity, 1)
        return 1 + totals if sums.is_weighted else totals / self._map_size

    def mean_abs_difference(self, sums: Sums, images: Sequence[Any]) -> float:
        """The mean ``|x - y|`` of all planes."""
        if sums.abs_difference is None:
            return _total(self.plane_abs_differences(sums, images)) / self._planes
        return _total(sums.abs_difference) / self._values

    def plane_abs_differences(self, sums: Sums, images: Sequence[Any]) -> Any:
        """The mean ``|x - y|`` of each plane, in float64."""
        differences = sums.abs_difference
        if differences is None:
            rows = np.empty(self._rows)
            run = functools.partial(
                self._kernels.abs_difference, *images, self._size, self.dtype.type(0), rows
            )
            in_threads(run, len(rows), self._values // LIGHT)
            differences = rows.reshape(self._planes, -1)
        # NumPy warns of an infinite sum, which torch computes silently.
        with np.errstate(over="ignore"):
            return np.add.reduce(differences, 1) / self._pixels

    def halve(self, pair: Pair, coarse: Level, valid: Tensor | None = None) -> Pair:
        """The images of the next coarser level.

        These are the means of 2x2 pixels, or of the valid ones among them if ``valid`` is given.
        """
        if self._is_volume and valid is not None:
            tensors = [image.to(self._empty.dtype) for image in pair.tensors]
            halves = [halve_valid(image, valid) for image in tensors]
            return Pair(halves, coarse.images(*halves))
        halves = [self._empty.new_empty(coarse.shape) for _ in pair.tensors]
        images = coarse.images(*halves)
        if valid is None:
            run = functools.partial(self._kernels.halve, *pair.images, *images, self._size)
        else:
            run = functools.partial(
                self._kernels.halve_valid,
                *(*pair.images, *images, plane_array(valid), self.shape[1], self._size),
                self._rows_of_threads(2),
            )
        in_threads(run, coarse._rows, 2 * self._values // LIGHT)
        return Pair(halves, images)

    def accumulate(
        self,
        gradient: Tensor,
        factors: Any,
        coarse: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Multiplies each plane by its factor and adds the next coarser gradient, in place.

        Autograd does not see this. Its function remembers that the saved gradients are consumed.
        """
        images, factors = self.images(gradient), factors.reshape(-1)
        with_torch = self._is_volume and valid is not None
        sent = None if coarse is None or with_torch else coarse.flatten(0, -3).numpy()
        if sent is None or valid is None:
            run = functools.partial(
                self._kernels.accumulate_level, *images, self._size, factors, sent
            )
        else:
            run = functools.partial(
                self._kernels.accumulate_valid,
                *(*images, self._size, factors, sent, plane_array(valid), self.shape[1]),
                self._rows_of_threads(1)[:, 0],
            )
        in_threads(run, self._rows, self._values // LIGHT)
        if coarse is not None and valid is not None and with_torch:
            gradient.data.add_(halve_valid_transpose(coarse, valid))

    def add_sign(self, gradient: Tensor, x: Tensor, y: Tensor, scale: Any) -> None:
        """Adds the gradient of each plane's mean ``|x - y|`` with respect to ``x``, in place."""
        run = functools.partial(
            self._kernels.add_sign,
            *self.images(gradient, x, y),
            self._size,
            scale.reshape(-1) / self.dtype.type(self._pixels),
        )
        in_threads(run, self._rows, self._values // LIGHT)

    def _rows_of_threads(self, count: int) -> Any:
        """Memory for ``count`` rows of pixels for each thread."""
        return np.empty((torch.get_num_threads(), count, self.shape[-1]), self.dtype)

    def _tasks_of(self, threads: int) -> Tasks:
        tasks = self._tasks.get(threads)
        if tasks is None:
            tasks = self._tasks_for(self.shape, self._window_sizes, threads, self.dtype)
            self._tasks[threads] = tasks
        return tasks


def plane_array(tensor: Tensor) -> Any:
    """A tensor ``(N, 1, ...)`` or ``(N, C, ...)`` as a contiguous array ``(N C, ...)``."""
    return tensor.flatten(0, 1).contiguous().numpy()


def _places(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, Any]:
    """The number of values from the first pixel to the last, and the place where each plane begins.

    Each slice of a volume counts as a plane.
    """
    last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
    starts = np.zeros(1, np.int64)
    for size, step in zip(shape[:-2], strides[:-2], strict=True):
        starts = np.add.outer(starts, np.arange(size) * step).ravel()
    return last + 1, starts


def _total(sums: Any) -> float:
    """The sum of an array.

    Python adds up a few numbers faster than NumPy, and does not warn of infinities.
    """
    return float(sum(sums.ravel().tolist()))
