"""Requests of one level, and the short way to their kernel."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._runtime.threads import in_threads
from ..backend import Forward, Layout
from ..request import Request, reduce_planes
from .level import NOTHING, Beside, Level, _places
from .tasks import kept_memory

# The reductions that give one number.
NUMBERS = ("mean", "loss")

Reader = Callable[[Tensor], Any]


class SingleLevel(Level):
    """The only level of a request, with the compiled kernel for its images.

    For a small image the kernel takes less time than torch, NumPy and Numba take around it. So
    images are read at their addresses, Numba looks at the types of the arguments only once, and
    Python adds up the few sums.
    """

    def __init__(
        self,
        x: Layout,
        y: Layout,
        request: Request,
        dtype: Any,
        mix: tuple[float, float] | None,
    ) -> None:
        """Prepares the call. ``dtype`` and ``mix`` are those of `Level`."""
        super().__init__(tuple(x.shape), request, dtype, contrast=False, mix=mix)
        self._request = request
        self._readers = self._reader(x.dtype, x.strides), self._reader(y.dtype, y.strides)
        # The first call fills these two.
        self._gradient_readers: list[Reader] = []
        self._compiled: Callable[..., None] | None = None

    def forward(self, x: Tensor, y: Tensor, beside: Beside = NOTHING) -> Forward:
        """Computes the value and the premultiplied gradients.

        The same fields of ``beside`` are given at each call, with the same dtypes: the plan of
        which this is a part is made for them.
        """
        count = self._request.gradients
        gradients = [torch.empty_like(image) for image in (x, y)[:count]]
        readers = self._gradient_readers
        if len(readers) < count:
            readers = [self._reader(gradient.dtype, gradient.stride()) for gradient in gradients]
            self._gradient_readers = readers
        read_x, read_y = self._readers
        images = read_x(x), read_y(y)
        written = [read(gradient) for read, gradient in zip(readers, gradients, strict=True)]
        tasks = self._tasks_of(torch.get_num_threads())
        sums = np.empty((self._planes, tasks.parts))
        abs_differences = np.empty_like(sums) if self._has_l1 else sums
        memory = kept_memory()

        def run(begin: int, end: int, share: int) -> None:
            self._call(
                *images, *written, *images[count:], *beside, *self._arguments,
                tasks.tasks[begin:end], *tasks.scratch.arrays(memory, share), sums, abs_differences,
            )  # fmt: skip

        in_threads(run, len(tasks.tasks), self._values)
        has_mix = self._request.mix is not None
        if self._request.reduction in NUMBERS and not (has_mix and beside.scales is not None):
            value = self._number(images, sums, abs_differences, beside)
        else:
            value = self._of_planes(images, sums, abs_differences, beside)
        return Forward(value, gradients)

    def _call(self, *arguments: Any) -> None:
        compiled = self._compiled
        if compiled is None:
            # Not at the top: importing the package does not import Numba.
            from ..._runtime import numba_kernels

            compile_for: Any = numba_kernels.compiled_for
            compiled = self._compiled = compile_for(self._march, arguments)
        compiled(*arguments)

    def _number(
        self, images: Sequence[Any], sums: Any, abs_differences: Any, beside: Beside
    ) -> Tensor:
        """The value over all planes."""
        if beside.map_weights is None:
            value = self._dtype.type(_total(sums) / (self._planes * self._map_size))
        else:
            value = self._dtype.type(1 + _total(sums) / self._planes)
        if self._request.mix is not None:
            structural, l1 = self._request.mix
            if self._has_l1:
                distance = _total(abs_differences) / self._values
            else:
                distance = _total(self.abs_difference(images)) / self._planes
            # NumPy warns of an infinity that float32 rounds to, which torch computes silently.
            with np.errstate(over="ignore"):
                value = self._dtype.type(structural * (1 - float(value)) + l1 * distance)
        elif self._request.reduction == "loss":
            value = 1 - value
        return torch.from_numpy(np.array(value, self._dtype))

    def _of_planes(
        self, images: Sequence[Any], sums: Any, abs_differences: Any, beside: Beside
    ) -> Tensor:
        """The value from the means of each plane, or these."""
        has_mix = self._request.mix is not None
        if beside.map_weights is None:
            means = [[sum(parts) / self._map_size for parts in sums.tolist()]]
        else:
            means = [[1 + sum(parts) for parts in sums.tolist()]]
        if self._has_l1:
            means.append([sum(parts) / self._pixels for parts in abs_differences.tolist()])
        elif has_mix:
            means.append(self.abs_difference(images))
        arrays = np.array(means, self._dtype).reshape(-1, *self.shape[:2])
        if has_mix and beside.scales is not None:
            with np.errstate(over="ignore"):
                arrays[-1] *= beside.scales[:, None]
        rows = torch.from_numpy(arrays)
        if self._request.reduction == "levels":
            return rows
        return reduce_planes(self._request, rows[0], rows[1] if has_mix else None)

    def _reader(self, dtype: torch.dtype, strides: tuple[int, ...]) -> Reader:
        """A function that gives a tensor with these strides as the kernels read it."""
        length, starts = _places(self.shape, strides)
        kind = np.dtype(str(dtype).removeprefix("torch."))
        memory_at = (ctypes.c_char * (length * kind.itemsize)).from_address
        row, column = strides[-2:]
        image, array = self._kernels.Image, np.ndarray

        def read(tensor: Tensor) -> Any:
            address = tensor.data_ptr()
            if not address:
                # Torch says what a tensor without memory is.
                return self.images(tensor)[0]
            memory: Any = memory_at(address)
            return image(array(length, kind, memory), starts, row, column)

        return read


def _total(sums: Any) -> float:
    """The sum of an array. Python adds up few numbers faster than NumPy, and any silently."""
    return float(sum(sums.ravel().tolist()))
