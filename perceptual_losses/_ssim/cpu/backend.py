"""The CPU backend: Numba kernels on the threads that torch would use."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..._runtime import numba_installed
from ..._runtime.threads import in_threads
from ..backend import Forward, Layout, premultiplied_by
from ..definition import FLOOR, Definition, Request, plane_gradient, reduce_planes
from ..pyramid import halved_shape, upsample_adjoint
from .tasks import kept_memory, scratch_arrays, tasks_for_images, tasks_for_volumes

# A pixel of the march costs as much as so many that are halved or scaled.
LIGHT = 16


@functools.cache
def _kernels() -> Any:
    from . import kernels

    return kernels


def unsupported(x: Tensor, y: Tensor, definition: Definition) -> str | None:
    """The reason why the backend is not meant for these images, or ``None``."""
    return None if x.device.type == "cpu" else f"the images are on {x.device} and it runs on CPUs"


def unavailable(device: torch.device) -> str | None:
    """The reason why the backend cannot run, or ``None``."""
    return numba_installed.unavailable()


def coarse_gradient(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for the gradient of ``image`` halved to this shape."""
    return image.new_empty(shape)


def plan(
    x: Layout, y: Layout, weights: tuple[Layout, ...], request: Request, device: torch.device
) -> CpuPlan:
    """The plan of a call on images of these layouts, float32 or float64."""
    return CpuPlan(x, y, request)


class Strided(NamedTuple):
    """The places of a tensor's pixels in its memory.

    Attributes:
        length: the number of values from the first pixel to the last.
        starts: the place of the first pixel of each plane, a volume's slices in turn.
        row: the step to the next row.
        column: the step to the next column.
    """

    length: int
    starts: Any
    row: int
    column: int

    @classmethod
    def of(cls, shape: Sequence[int], strides: Sequence[int]) -> Strided:
        """The places for a shape and strides."""
        last = sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        starts = np.zeros(1, np.int64)
        for size, step in zip(shape[:-2], strides[:-2], strict=True):
            starts = np.add.outer(starts, np.arange(size) * step).ravel()
        return cls(last + 1, starts, strides[-2], strides[-1])

    def image(self, tensor: Tensor) -> Any:
        """A tensor of this layout as the kernels read it."""
        flat = tensor.detach().as_strided([self.length], [1]).numpy()
        return _kernels().Image(flat, self.starts, self.row, self.column)


def _strided(tensor: Tensor) -> Any:
    return Strided.of(tensor.shape, tensor.stride()).image(tensor)


class Level(NamedTuple):
    """One level of the pyramid, as the march is told of it.

    Attributes:
        shape: the shape of its images.
        images: the places of both images' pixels and of their gradients'.
        constants: the kernel's numbers: low, C1, C2 and the gradient of each plane's mean.
        modes: the padding, whether it mirrors, whether the factor is contrast-structure only, and
            which gradients there are.
        map_size: the number of values of the map of a plane.
    """

    shape: tuple[int, ...]
    images: tuple[Strided, Strided, Strided, Strided]
    constants: tuple[Any, ...]
    modes: tuple[Any, ...]
    map_size: int


class CpuPlan:
    """A call on a CPU; `Plan` has the interface."""

    def __init__(self, x: Layout, y: Layout, request: Request) -> None:
        """Plans each level for images of these layouts."""
        self.request = request
        self._dtype = np.dtype(str(x.dtype).removeprefix("torch."))
        self._window = np.array(request.definition.window, self._dtype)
        self._extent = (0,) * len(request.definition.window)
        self._premultiplied_by = premultiplied_by(request, x.shape)
        self._pixels = math.prod(x.shape[2:])
        # A mix of one level has the gradient of L1 in its own; else the backward pass adds it.
        self._mixed = request.mix is not None and not request.exponents
        self._mixed &= request.reduction != "levels"
        self._l1 = None
        if self._mixed and request.gradients:
            assert request.mix is not None
            self._l1 = self._dtype.type(request.mix[1] / (math.prod(x.shape[:2]) * self._pixels))
        layouts = [(tuple(x.shape), x.strides, y.strides)]
        while len(layouts) < request.levels:
            shape = tuple(halved_shape(layouts[-1][0]))
            strides = _contiguous_strides(shape)
            layouts.append((shape, strides, strides))
        last = len(layouts) - 1
        self._levels = [self._level(*sizes, j < last) for j, sizes in enumerate(layouts)]

    def _level(
        self,
        shape: tuple[int, ...],
        x_strides: tuple[int, ...],
        y_strides: tuple[int, ...],
        contrast: bool,
    ) -> Level:
        window, low, c1, c2, padding = self.request.definition
        strides = x_strides, y_strides, _like(shape, x_strides), _like(shape, y_strides)
        images = [Strided.of(shape, each) for each in strides]
        structural = self.request.mix[0] if self.request.mix and self._mixed else 1
        constants = low, c1, c2, structural * plane_gradient(shape)
        mirrored = True if padding == "symmetric" else None
        lost = len(window) - 1 if padding == "valid" else 0
        return Level(
            shape,
            (images[0], images[1], images[2], images[3]),
            tuple(map(self._dtype.type, constants)),
            (padding.upper(), mirrored, contrast, self.request.gradients),
            math.prod(side - lost for side in shape[2:]),
        )

    def forward(self, x: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Forward:
        """Computes the value and the premultiplied gradients."""
        request = self.request
        pyramid = [(x, y)]
        while len(pyramid) < len(self._levels):
            pyramid.append(self._halve(*pyramid[-1], self._levels[len(pyramid) - 1]))
        means: list[Tensor] = []
        gradients: list[list[Tensor]] = [[] for _ in range(request.gradients)]
        distance = None
        # The coarsest is first, and each pair of images is freed before the next gradient is
        # allocated: a step takes little more memory than its gradients.
        for j in reversed(range(len(self._levels))):
            images = pyramid.pop()
            for image, memory in zip(images, gradients, strict=False):
                memory.append(torch.empty_like(image))
            weight = weights[j] if weights else None
            mean, distance = self._march(self._levels[j], images, gradients, weight)
            means.append(mean)
        saved = [gradient for of_image in gradients for gradient in reversed(of_image)]
        if request.mix is not None and distance is None:
            distance = self._distance(x, y)
        if request.reduction == "levels":
            last_row = [] if distance is None else [distance]
            return Forward(torch.stack(means[::-1] + last_row), saved)
        if not request.exponents:
            return Forward(reduce_planes(request, means[0], distance), saved)
        similarity, factors = combine_levels(torch.stack(means[::-1]), request)
        return Forward(reduce_planes(request, similarity, distance), [factors, *saved])

    def backward(
        self, saved: Sequence[Tensor], grad: Tensor | None, x: Tensor, y: Tensor
    ) -> list[Tensor]:
        """Scales the saved gradients in place and adds up those of the levels."""
        request, usual = self.request, self._premultiplied_by
        if not request.exponents:
            if grad is not None:
                factor = grad.expand(x.shape[:2]) / usual
                for gradient in saved:
                    if (grad != usual).any():
                        _multiply(gradient, factor)
            return list(saved)
        factors, *gradients = saved
        scale = factors * (usual if grad is None else grad)
        per_image = len(gradients) // request.gradients
        images = ((x, y), (y, x))
        found = []
        for k in range(request.gradients):
            levels = gradients[k * per_image : (k + 1) * per_image]
            self._accumulate_levels(levels, scale / usual)
            if request.mix is not None:
                self._add_sign(levels[0], *images[k], scale[-1])
            found.append(levels[0])
        return found

    def _march(
        self,
        level: Level,
        images: tuple[Tensor, Tensor],
        gradients: Sequence[list[Tensor]],
        weight: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The means of one level, with its gradients written into the last of each list.

        Returns:
            The mean of each plane, and in a mix with a gradient its mean ``|x - y|``.
        """
        kernels, dtype, shape = _kernels(), self._dtype, level.shape
        volume = len(shape) == 5
        split = tasks_for_volumes if volume else tasks_for_images
        march = kernels.march_volume if volume else kernels.march
        tasks, scratch, parts = split(shape, len(self._extent), torch.get_num_threads())
        of_images = [place.image(i) for place, i in zip(level.images[:2], images, strict=True)]
        of_gradients = [
            place.image(memory[-1])
            for place, memory in zip(level.images[2:], gradients, strict=False)
        ]
        # Where there is no gradient the kernel gets an image, which it does not touch.
        of_gradients += of_images[: 2 - len(of_gradients)]
        map_weights = None if weight is None else weight.squeeze(1).contiguous().numpy()
        sums = np.empty((math.prod(shape[:2]), parts))
        distances = np.empty_like(sums)
        memory = kept_memory()
        padding, mirror, *others = level.modes
        variant = kernels.Variant(getattr(kernels, padding), *others)
        mirrored = () if volume else (mirror,)
        window = kernels.Window(self._extent, self._window)
        constants = kernels.Constants(*level.constants)

        def run(begin: int, end: int, share: int) -> None:
            march(
                *of_images, *of_gradients, map_weights, shape, window, constants, self._l1,
                *mirrored, variant, tasks[begin:end],
                *scratch_arrays(memory, share, scratch, dtype), sums, distances,
            )  # fmt: skip

        in_threads(run, len(tasks), images[0].numel())
        mean = sums.sum(1).reshape(shape[:2])
        if weight is None:
            mean /= level.map_size
        else:
            # The kernel adds up weighted deficits, whose sum is the mean's distance from 1.
            mean += 1
        found = torch.from_numpy(mean.astype(dtype))
        if self._l1 is None:
            return found, None
        distance = distances.sum(1).reshape(shape[:2]) / math.prod(shape[2:])
        return found, torch.from_numpy(distance.astype(dtype))

    def _halve(self, x: Tensor, y: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        if x.dim() == 5:
            pool = functools.partial(torch.nn.functional.avg_pool3d, kernel_size=2, ceil_mode=True)
            return pool(x), pool(y)
        kernels, shape = _kernels(), level.shape
        images = [place.image(i) for place, i in zip(level.images[:2], (x, y), strict=True)]
        halves = [image.new_empty(halved_shape(shape)) for image in (x, y)]
        outs = [half.flatten(0, 1).numpy() for half in halves]
        memory = kept_memory()

        def run(begin: int, end: int, share: int) -> None:
            (rows,) = scratch_arrays(memory, share, [(2, shape[3])], self._dtype)
            for image, out in zip(images, outs, strict=True):
                kernels.halve(image, shape, begin, end, rows, out)

        in_threads(run, outs[0].shape[0] * outs[0].shape[1], 2 * x.numel() // LIGHT)
        return halves[0], halves[1]

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean of ``|x - y|`` over each plane; a volume's slices are summed one by one."""
        images, (height, width) = [_strided(image) for image in (x, y)], x.shape[-2:]
        kernels, sums = _kernels(), np.empty(x.numel() // width)
        in_threads(
            lambda begin, end, share: kernels.abs_difference(
                *images, height, width, begin, end, sums
            ),
            len(sums),
            x.numel() // LIGHT,
        )
        mean = sums.reshape(*x.shape[:2], -1).sum(2) / self._pixels
        return torch.from_numpy(mean.astype(self._dtype))

    def _accumulate_levels(self, gradients: Sequence[Tensor], factors: Tensor) -> None:
        """Makes the finest gradient the whole one, in place."""
        _multiply(gradients[-1], factors[len(gradients) - 1])
        for j in reversed(range(len(gradients) - 1)):
            fine, coarse = gradients[j], gradients[j + 1]
            if fine.dim() == 5:
                _multiply(fine, factors[j])
                # As the kernels write: autograd does not see it, and the plan knows what is used.
                fine.data.add_(upsample_adjoint(coarse, fine.shape))
            else:
                self._accumulate_level(fine, factors[j], coarse)

    def _accumulate_level(self, fine: Tensor, factor: Tensor, coarse: Tensor) -> None:
        kernels, image, shape = _kernels(), _strided(fine), tuple(fine.shape)
        factors = factor.reshape(-1).contiguous().numpy()
        coarser = coarse.flatten(0, 1).numpy()
        memory = kept_memory()

        def run(begin: int, end: int, share: int) -> None:
            (rows,) = scratch_arrays(memory, share, [(1, shape[3])], factors.dtype)
            kernels.accumulate_level(image, shape, factors, coarser, begin, end, rows[0])

        in_threads(run, shape[0] * shape[1] * shape[2], fine.numel() // LIGHT)

    def _add_sign(self, gradient: Tensor, x: Tensor, y: Tensor, scale: Tensor) -> None:
        """Adds the gradient of the mean ``|x - y|`` with respect to ``x``."""
        kernels, (height, width) = _kernels(), x.shape[-2:]
        images = [_strided(image) for image in (gradient, x, y)]
        per_plane = (scale / self._pixels).flatten()
        # The factor of a plane for each slice of a volume.
        scales = per_plane.repeat_interleave(math.prod(x.shape[2:-2])).numpy()
        in_threads(
            lambda begin, end, share: kernels.add_sign(*images, scales, height, width, begin, end),
            x.numel() // width,
            x.numel() // LIGHT,
        )


def _contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


def _like(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of memory like a tensor's, which has no gaps and no overlaps."""
    return torch.empty_like(torch.empty_strided(shape, strides, device="meta")).stride()


def combine_levels(means: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """The product of the levels' means, and its derivatives by them.

    Returns:
        The similarity of each plane ``(N, C)``, and the derivatives ``(levels, N, C)`` of the
        requested value; for a mix one row more, the derivative by the mean ``|x - y|``.
    """
    levels = len(request.exponents)
    bases = means.numpy()
    slopes = np.ones_like(bases)
    powers = np.asarray(request.exponents, bases.dtype)[:, None, None]
    dead = np.zeros(bases.shape, bool)
    with np.errstate(all="ignore"):
        if request.normalize == "floor":
            low = bases <= FLOOR
            below = FLOOR**2 / (2 * FLOOR - np.minimum(bases, FLOOR))
            slopes = np.where(low, (below / FLOOR) ** 2, slopes)
            bases = np.where(low, below, bases)
        elif request.normalize == "simple":
            bases, slopes = (bases + 1) / 2, slopes / 2
        elif request.normalize == "relu":
            dead = bases <= 0
            bases = np.where(dead, 1, bases)
        factors = np.where(dead, 0, bases**powers)
        derivatives = np.where(dead | (powers == 0), 0, powers * bases ** (powers - 1) * slopes)
    # Not the whole product divided by a factor, which can be zero.
    others = np.repeat(factors[None], levels, 0)
    each = np.arange(levels)
    others[each, each] = derivatives
    similarity, by_means = torch.from_numpy(factors.prod(0)), torch.from_numpy(others.prod(1))
    if request.mix is None:
        return similarity, by_means
    structural, l1 = request.mix
    l1 = l1 if request.reduction == "none" else l1 / similarity.numel()
    last_row = torch.full_like(by_means[:1], l1)
    return similarity, torch.cat([structural * by_means, last_row])


def _multiply(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies each plane by its number, in place."""
    array = gradient.detach().numpy()
    factors = factor.reshape(*factor.shape, *[1] * (gradient.dim() - 2)).numpy()

    def run(begin: int, end: int, share: int) -> None:
        rows = array[:, :, begin:end]
        # NumPy warns of NaN and infinity, which torch computes silently.
        with np.errstate(all="ignore"):
            np.multiply(rows, factors, out=rows)

    in_threads(run, gradient.shape[2], gradient.numel() // LIGHT)
