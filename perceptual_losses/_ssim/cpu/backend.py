"""The CPU backend: Numba kernels on the threads that torch would use."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._runtime import numba_installed
from ..backend import NO_AUXILIARY, Auxiliary, Forward, Layout, premultiplied_by
from ..pyramid import halved_shape
from ..request import FLOOR, Request, centres, num_levels, reduce_planes
from .level import NO_ARRAYS, AuxiliaryArrays, Level, Pair, Sums, plane_array

# The reductions that give one number.
NUMBERS = ("mean", "loss")


def unsupported(x: Tensor, y: Tensor, request: Request) -> str | None:
    """The reason why the backend is not meant for this call, or ``None``."""
    return None if x.device.type == "cpu" else f"the images are on {x.device} and it runs on CPUs"


def unavailable(device: torch.device) -> str | None:
    """The reason why the backend cannot run, or ``None``."""
    return numba_installed.unavailable()


def coarse_gradient(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for the gradient of ``image`` halved to this shape."""
    return image.new_empty(shape)


def plan(
    x: Layout, y: Layout, auxiliary: Auxiliary, request: Request, device: torch.device
) -> CpuPlan:
    """The plan of a call on images of these layouts, in float32, float64 or bytes."""
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    return CpuPlan(x, y, dtype, request)


class CpuPlan:
    """A call on a CPU. `Plan` describes the interface."""

    def __init__(self, x: Layout, y: Layout, dtype: torch.dtype, request: Request) -> None:
        """Prepares each level."""
        self.request = request
        self._dtype = np.dtype(str(dtype).removeprefix("torch."))
        self._premultiplied_by = self._dtype.type(premultiplied_by(request, x.shape))
        # The march of a single level adds the gradient of L1 to that of SSIM. With several levels,
        # or an upstream gradient for each term, the backward pass adds it.
        mix = None if request.exponents or request.reduction == "levels" else request.mix
        self._adds_sign = request.mix is not None and mix is None
        self._gives_number = request.reduction in NUMBERS and not request.exponents
        shapes = [tuple(x.shape)]
        while len(shapes) < num_levels(request):
            shapes.append(tuple(halved_shape(shapes[-1])))
        self._levels = [
            Level(each, request, self._dtype, contrast=j < len(shapes) - 1, mix=mix)
            for j, each in enumerate(shapes)
        ]

    def forward(self, x: Tensor, y: Tensor, auxiliary: Auxiliary = NO_AUXILIARY) -> Forward:
        """Computes the value and the premultiplied gradients."""
        request, levels = self.request, self._levels
        if request.reduction == "map":
            return Forward(self._map(x, y, auxiliary), ())
        if self._gives_number and not (request.mix and auxiliary.ranges):
            pair = Pair((x, y), levels[0].images(x, y))
            sums, gradients = self._march(0, pair, auxiliary)
            return Forward(self._number(pair, sums), gradients)
        pyramid = [Pair((x, y), levels[0].images(x, y))]
        for j, (fine, coarse) in enumerate(itertools.pairwise(levels)):
            valid = auxiliary.valid[j] if auxiliary.valid else None
            pyramid.append(fine.halve(pyramid[-1], coarse, valid))
        means = np.empty((len(levels) + (request.mix is not None), *x.shape[:2]), self._dtype)
        rows = means.reshape(len(means), -1)
        of_levels: list[list[Tensor]] = []
        # The coarsest level is first, and each pair of images is freed before the next gradient is
        # allocated: a step takes little more memory than its gradients.
        for j in reversed(range(len(levels))):
            pair = pyramid.pop()
            sums, gradients = self._march(j, pair, auxiliary)
            rows[j] = levels[j].plane_similarities(sums)
            of_levels.insert(0, gradients)
        if request.mix is not None:
            # The last sums and images are those of the finest level.
            rows[-1] = levels[0].plane_abs_differences(sums, pair.images)
            if auxiliary.ranges:
                with np.errstate(over="ignore"):
                    means[-1] /= auxiliary.ranges[0].numpy()[:, None]
        saved = [gradient for of_image in zip(*of_levels, strict=True) for gradient in of_image]
        if request.reduction == "levels":
            return Forward(torch.from_numpy(means), saved)
        similarity = torch.from_numpy(means[0])
        if request.exponents:
            similarity, factors = combine_levels(torch.from_numpy(means[: len(levels)]), request)
            saved.insert(0, factors)
        distance = None if request.mix is None else torch.from_numpy(means[-1])
        value = reduce_planes(request, similarity, distance)
        if request.reduction == "both":
            # The last sums are those of the finest level.
            ssim = levels[0].mean_similarity(sums._replace(similarity=sums.ssim))
            value = torch.stack([value.new_tensor(ssim), value])
        return Forward(value, saved)

    def backward(
        self,
        saved: Sequence[Tensor],
        grad: Tensor | None,
        x: Tensor,
        y: Tensor,
        auxiliary: Auxiliary = NO_AUXILIARY,
    ) -> Sequence[Tensor]:
        """Scales the saved gradients in place and adds up those of the levels."""
        request, levels, usual = self.request, self._levels, self._premultiplied_by
        # Torch reads one number faster than NumPy.
        if self._gives_number and (grad is None or grad.item() == usual):
            return saved
        if request.reduction == "map":
            assert grad is not None  # A map stores no gradient: ``None`` has no meaning for it.
            return self._map_gradients(grad, x, y, auxiliary)
        upstream = usual if grad is None else grad.numpy()
        if request.exponents and request.reduction != "levels":
            derivatives, *gradients = saved
            by_means = derivatives.numpy()
        elif request.reduction == "levels" or np.count_nonzero(upstream != usual):
            gradients, by_means = list(saved), np.ones((1, *x.shape[:2]), self._dtype)
        else:
            return list(saved)
        # NumPy warns of NaN and infinity, and torch does not.
        with np.errstate(all="ignore"):
            scale = by_means * upstream
            factors = scale / usual
            if self._adds_sign and auxiliary.ranges:
                scale[-1] /= auxiliary.ranges[0].numpy()[:, None]
        images = (x, y), (y, x)
        found = []
        for k in range(request.gradients):
            of_levels = gradients[k * len(levels) : (k + 1) * len(levels)]
            for j in reversed(range(len(levels))):
                coarse = of_levels[j + 1] if j + 1 < len(levels) else None
                valid = auxiliary.valid[j] if auxiliary.valid else None
                levels[j].accumulate(of_levels[j], factors[j], coarse, valid)
            if self._adds_sign:
                levels[0].add_sign(of_levels[0], *images[k], scale[-1])
            found.append(of_levels[0])
        return found

    def _march(self, j: int, pair: Pair, auxiliary: Auxiliary) -> tuple[Sums, list[Tensor]]:
        """Runs the march of level ``j``: its sums, and premultiplied gradients of its images."""
        level, count = self._levels[j], self.request.gradients
        gradients = [torch.empty_like(image) for image in pair.tensors[:count]]
        arrays = NO_ARRAYS if auxiliary is NO_AUXILIARY else _arrays(level, auxiliary, j)
        return level.march(pair.images, gradients, arrays), gradients

    def _number(self, pair: Pair, sums: Sums) -> Tensor:
        """The value of one level as one number, which Python computes faster than torch."""
        request, level = self.request, self._levels[0]
        value = self._dtype.type(level.mean_similarity(sums))
        if request.mix is not None:
            structural, l1 = request.mix
            distance = level.mean_abs_difference(sums, pair.images)
            # NumPy warns of a number that float32 rounds to infinity, and torch does not.
            with np.errstate(over="ignore"):
                value = self._dtype.type(structural * (1 - float(value)) + l1 * distance)
        elif request.reduction == "loss":
            value = 1 - value
        return torch.from_numpy(np.array(value, self._dtype))

    def _map(self, x: Tensor, y: Tensor, auxiliary: Auxiliary) -> Tensor:
        """The similarity of each window."""
        level = self._without_gradient
        similarity = level.new_map()
        arrays = _arrays(level, auxiliary)._replace(map_out=plane_array(similarity))
        level.march(level.images(x, y), (), arrays)
        if auxiliary.valid:
            inside = centres(auxiliary.valid[0], self.request.definition)
            similarity.masked_fill_(~inside, 1)
        return similarity

    def _map_gradients(
        self, grad: Tensor, x: Tensor, y: Tensor, auxiliary: Auxiliary
    ) -> list[Tensor]:
        """The gradients of the images, from the upstream gradient of each window's similarity."""
        level = self._levels[0]
        if auxiliary.valid:
            grad = torch.where(centres(auxiliary.valid[0], self.request.definition), grad, 0.0)
        gradients = [torch.empty_like(image) for image in (x, y)[: self.request.gradients]]
        (weights,), factors = level.images(grad), np.ones(len(grad), self._dtype)
        arrays = _arrays(level, auxiliary)._replace(map_weights=weights, weight_factors=factors)
        level.march(level.images(x, y), gradients, arrays)
        return gradients

    @functools.cached_property
    def _without_gradient(self) -> Level:
        request = self.request._replace(gradients=0)
        return Level(self._levels[0].shape, request, self._dtype, contrast=False, mix=None)


def _arrays(level: Level, auxiliary: Auxiliary, j: int = 0) -> AuxiliaryArrays:
    """The auxiliary tensors of level ``j`` as its march reads them."""
    weights = factors = None
    if auxiliary.weights:
        # Boolean weights are the valid pixels, which the march reads itself.
        if auxiliary.weights[j].dtype != torch.bool:
            (weights,) = level.images(auxiliary.weights[j])
        factors = np.reciprocal(auxiliary.totals[j].numpy())
    # For a few numbers a list is faster than `Tensor.numpy`.
    ranges = np.array(auxiliary.ranges[0].tolist(), level.dtype) if auxiliary.ranges else None
    valid = plane_array(auxiliary.valid[j]) if auxiliary.valid else None
    coverage = plane_array(auxiliary.coverage[j]) if auxiliary.coverage else None
    return AuxiliaryArrays(weights, factors, ranges, valid, coverage=coverage)


def combine_levels(means: Tensor, request: Request) -> tuple[Tensor, Tensor]:
    """The product of the levels' means, and its derivatives by them.

    Returns:
        The similarity of each plane, ``(N, C)``, and its derivatives by the means,
        ``(levels, N, C)``. In a mix these are multiplied by the structural weight, and a row
        follows them with the derivative of the loss by the mean ``|x - y|``. The sign with which
        the similarity enters a loss is not in them: the stored gradients have it.
    """
    values: Any = means.numpy()
    powers = np.array(request.exponents, values.dtype)[:, None, None]
    with np.errstate(all="ignore"):
        bases, slopes, dead = _normalized(values, request.normalize)
        factors = np.where(dead, 0, bases**powers)
        derivatives = np.where(dead | (powers == 0), 0, powers * bases ** (powers - 1) * slopes)
    # Not the whole product divided by a factor, which can be zero.
    others = np.repeat(factors[None], len(powers), 0)
    each = np.arange(len(powers))
    others[each, each] = derivatives
    similarity, by_means = torch.from_numpy(factors.prod(0)), torch.from_numpy(others.prod(1))
    if request.mix is None:
        return similarity, by_means
    structural, l1 = request.mix
    l1 = l1 if request.reduction == "none" else l1 / similarity.numel()
    last_row = torch.full_like(by_means[:1], l1)
    return similarity, torch.cat([structural * by_means, last_row])


def _normalized(means: Any, normalize: str | None) -> tuple[Any, Any, Any]:
    """The bases of the powers, their derivatives by the means, and whether each is cut to zero."""
    if normalize == "floor":
        low = means <= FLOOR
        if not np.count_nonzero(low):
            return means, 1, False
        below = FLOOR**2 / (2 * FLOOR - np.minimum(means, FLOOR))
        return np.where(low, below, means), np.where(low, (below / FLOOR) ** 2, 1), False
    if normalize in ("relu", "simple"):
        bases, slope = (means, 1) if normalize == "relu" else ((means + 1) / 2, 0.5)
        dead = bases <= 0
        return np.where(dead, 1, bases), slope, dead
    return means, 1, False
