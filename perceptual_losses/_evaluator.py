"""A similarity or a loss with its options checked, and the plans of the images that it has met."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _validation
from ._runtime.warnings import warn
from ._ssim import Plans, Request, call_key, compute_dtype, evaluate, halve, replaced


class Options(NamedTuple):
    """The options of a function or a loss as its user gave them; `ssim` and `ms_ssim` explain them.

    Attributes:
        weights: the exponents of MS-SSIM's levels, or ``None`` for SSIM.
        loss: whether the value is 1 minus the similarity.
        structural_weight: the weight of that in a mix with L1, or ``None`` for no mix.
    """

    data_range: Any
    window_size: Any
    sigma: Any
    k1: Any
    k2: Any
    padding: Any
    reduction: Any
    backend: Any
    weights: Any = None
    levels: Any = "auto"
    normalize: Any = None
    loss: bool = False
    structural_weight: Any = None


class Evaluator:
    """Computes what its options say. A call on images like earlier ones is looked up and run.

    Attributes:
        request: the options, checked; for MS-SSIM with the exponents of all levels.
    """

    def __init__(self, options: Options) -> None:
        """Checks the options.

        Raises:
            TypeError: an option is of a kind that is not accepted.
            ValueError: an option has a value that is not.
        """
        self.request = _request(options)
        self._options = options
        self._plans: Plans = {}

    def __call__(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The value: a scalar, or ``(N,)`` with ``reduction="none"``."""
        key = call_key(x, y) if mask is None else None
        call = self._plans.get(key) if key is not None else None
        if call is None:
            return self._first_call(x, y, mask)
        if call.notice is not None:
            warn(call.notice)
        value = call(x, y)
        return self._per_image(value) if self.request.reduction == "none" else value

    def value_and_grad(self, x: Tensor, y: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient of its sum with respect to ``x``; nothing is recorded."""
        key = call_key(x, y, gradients=1) if mask is None else None
        call = self._plans.get(key) if key is not None else None
        if call is None:
            return self._recorded_value_and_grad(x, y, mask)
        if call.notice is not None:
            warn(call.notice)
        with torch.no_grad():
            value, saved = call.plan.forward(x, y, ())
            per_image = self.request.reduction == "none"
            grad = self._grad_of_planes(value) if per_image else None
            (gradient,) = call.plan.backward(saved, grad, x, y)
            if gradient.dtype != x.dtype:
                gradient = gradient.to(x.dtype)
            return self._per_image(value) if per_image else value, gradient

    def _recorded_value_and_grad(
        self, x: Tensor, y: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        _validation.check_differentiable("x", x)
        with torch.enable_grad():
            # The call on a leaf leaves the plan that the next call finds.
            leaf = x.detach().requires_grad_()
            recorded = self(leaf, y.detach(), mask)
            value = recorded.detach()
            (gradient,) = torch.autograd.grad(recorded.sum(), leaf)
        memory = torch.empty_like(x)
        if gradient.stride() != memory.stride():
            # The operations of a masked mix may have laid it out otherwise.
            gradient = memory.copy_(gradient)
        return value, gradient

    def _first_call(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        options, request = self._options, self.request
        _validation.check_images(x, y, request.definition, options.data_range)
        notice = None
        if request.exponents:
            exponents, notice = _validation.fit_levels(
                request.exponents, options.levels, x, options.window_size
            )
            request = replaced(request, exponents=exponents)
        if notice is not None:
            warn(notice)
        if mask is None:
            value = evaluate(x, y, (), request, options.backend, self._plans, notice)
            return self._per_image(value) if request.reduction == "none" else value
        pixel_weights = _validation.mask_weights(mask, x, y)
        map_weights = _map_weights(pixel_weights, request)
        structural = replaced(request, mix=None)
        value = evaluate(x, y, map_weights, structural, options.backend, self._plans, None)
        if request.reduction == "none":
            value = value.mean(1)
            value = 1 - value if options.loss else value
        if request.mix is None:
            return value
        distance = _weighted_distance(x, y, pixel_weights)
        _, length = _validation.low_and_length(options.data_range)
        distance = distance if request.reduction == "none" else distance.mean()
        return torch.lerp(distance / length, value, options.structural_weight)

    def _per_image(self, value: Tensor) -> Tensor:
        """The mean over the channels of each plane's value, which a mix has as a loss already."""
        value = value.mean(1)
        return 1 - value if self._options.loss and self.request.mix is None else value

    def _grad_of_planes(self, value: Tensor) -> Tensor:
        """The gradient of the sum over all images of `_per_image`."""
        sign = 1 if self.request.mix is not None else -1
        return torch.full_like(value, sign / value.shape[1])


def evaluator(options: Options) -> Evaluator:
    """The evaluator of these options: the same one for the same options, if these can be hashed."""
    if isinstance(options.weights, list):
        options = options._replace(weights=tuple(options.weights))
    if torch.compiler.is_compiling():
        return Evaluator(options)
    try:
        return _evaluator(options, _types(options))
    except TypeError:
        # An option is not accepted, or accepted and not hashable.
        return Evaluator(options)


@functools.lru_cache(maxsize=256)
def _evaluator(options: Options, types: Any) -> Evaluator:
    return Evaluator(options)


def _types(options: Options) -> tuple[Any, ...]:
    """The types of all options: True equals 1, and is no number."""
    pairs = (options.data_range, options.weights)
    nested = [tuple(map(type, pair)) for pair in pairs if isinstance(pair, tuple)]
    return (*map(type, options), *nested)


def _request(options: Options) -> Request:
    """The request that the options spell, each of them checked."""
    definition = _validation.settings(**dict(zip(options._fields[:8], options[:8], strict=True)))
    mix: tuple[float, float] | None = None
    exponents: tuple[float, ...] = ()
    if options.structural_weight is not None:
        weight = options.structural_weight
        _, length = _validation.low_and_length(options.data_range)
        mix = weight, (1 - weight) / length
    if options.weights is not None:
        exponents = _validation.level_weights(options.weights)
        _validation.check_levels(options.levels, len(exponents))
        _validation.check_choice("normalize", options.normalize, _validation.NORMALIZATIONS)
    reduction = "loss" if options.loss and options.reduction == "mean" else options.reduction
    return Request(definition, exponents, options.normalize, mix, reduction)


def _map_weights(pixel_weights: Tensor, request: Request) -> list[Tensor]:
    """The weight of each value of the map at each level, summing to one for each image."""
    map_weights = [_normalized(pixel_weights, request)]
    while len(map_weights) < len(request.exponents):
        pixel_weights = halve(pixel_weights)
        map_weights.append(_normalized(pixel_weights, request))
    return map_weights


def _normalized(pixel_weights: Tensor, request: Request) -> Tensor:
    if request.definition.padding == "valid":
        radius = len(request.definition.window) // 2
        for dim in range(2, pixel_weights.dim()):
            length = pixel_weights.shape[dim] - 2 * radius
            pixel_weights = pixel_weights.narrow(dim, radius, length)
    total = pixel_weights.sum(tuple(range(1, pixel_weights.dim())), keepdim=True)
    _validation.check_total(total)
    return pixel_weights / total.clamp(min=torch.finfo(total.dtype).tiny)


def _weighted_distance(x: Tensor, y: Tensor, pixel_weights: Tensor) -> Tensor:
    """The weighted mean of ``|x - y|`` for each image, ``(N,)``."""
    dtype = compute_dtype(x, y)
    distance = (x.to(dtype) - y.to(dtype)).abs().mean(1, keepdim=True)
    total = pixel_weights.flatten(1).sum(1)
    _validation.check_total(total)
    total = total.clamp(min=torch.finfo(pixel_weights.dtype).tiny)
    return (distance * pixel_weights).flatten(1).sum(1) / total
