"""A similarity or a loss with its options checked, and the plans of the images that it has met."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _masks, _validation
from ._runtime import shards
from ._runtime.warnings import warn
from ._ssim import (
    BACKENDS,
    NO_AUXILIARY,
    Auxiliary,
    Key,
    Plans,
    Request,
    call_key,
    combine,
    compute_dtype,
    evaluate,
    for_axes,
    readable_images,
    replaced,
)


class Options(NamedTuple):
    """The options of a function or a loss as its user gave them; `ssim` and `ms_ssim` explain them.

    Attributes:
        weights: the exponents of MS-SSIM's levels, or an ellipsis for SSIM. ``None`` is refused.
        loss: whether the value is 1 minus the similarity.
        structural_weight: the weight of 1 minus the similarity in a mix with L1, or ``None`` for no
            mix.
        as_map: whether the value is the map.
    """

    data_range: Any
    window: Any
    window_size: Any
    sigma: Any
    k1: Any
    k2: Any
    sample_covariance: Any
    padding: Any
    reduction: Any
    backend: Any
    weights: Any = ...
    levels: Any = "auto"
    normalize: Any = None
    loss: bool = False
    structural_weight: Any = None
    as_map: bool = False


# The options that make a definition.
_DEFINING = Options._fields[: Options._fields.index("reduction")]
# The options that may be sequences, and the types of values that stay as they are.
SEQUENCES = ("window_size", "sigma", "weights")
_UNCHANGING = (tuple, int, float, type(...))


class Terms(NamedTuple):
    """A mix and the two terms that it is made of.

    Attributes:
        loss: the mix, as the loss returns it.
        l1: the mean of ``|x - y|``, in units of the data range.
        structural: 1 minus the similarity.
    """

    loss: Tensor
    l1: Tensor
    structural: Tensor


class Evaluator:
    """Computes the value that its options define. A call like an earlier one reuses its plan.

    Attributes:
        request: the options, checked; for MS-SSIM with the exponents of all levels.
    """

    def __init__(self, options: Options) -> None:
        """Checks the options.

        Raises:
            TypeError: an option is of a kind that is not accepted.
            ValueError: an option has a value that is not accepted.
        """
        self.request = _request(options)
        # For images that each have a range: the constants are in units of that range.
        self._request_in_ranges = _request(replaced(options, data_range=1.0))
        self._options = options
        self._plans: Plans = {}
        self._terms_plans: Plans = {}
        self._plans_of_both: Plans = {}

    def __call__(
        self, x: Tensor, y: Tensor, mask: Any = None, valid: Any = None, ranges: Any = None
    ) -> Tensor:
        """The value: a scalar, or ``(N,)`` with ``reduction="none"``, or the map.

        ``ranges`` has the range of each image; the others are as for `ssim`.
        """
        is_plain = mask is None and valid is None and ranges is None
        key = call_key(x, y) if is_plain else call_key(x, y, mask, valid, ranges)
        call = self._plans.get(key) if key is not None else None
        if call is None:
            return self._checked_call(key, x, y, mask, valid, ranges)
        if call.notice is not None:
            warn(call.notice)
        if is_plain:
            value = call(x, y)
        else:
            # Their forms are in the key, so only their values are checked.
            extras = self._read_extras(x, y, mask, valid, ranges, call.plan.request)
            value = call(x, y, extras.auxiliary)
        return self._per_image(value) if self.request.reduction == "none" else value

    def value_and_grad(
        self, x: Tensor, y: Tensor, mask: Any = None, valid: Any = None, ranges: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the gradient of its sum with respect to ``x``; nothing is recorded."""
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            # Outside inference mode neither autograd nor an optimizer takes a tensor made in it.
            with torch.inference_mode(False):
                return self.value_and_grad(x, y, mask, valid, ranges)
        is_plain = mask is None and valid is None and ranges is None
        key = call_key(x, y, gradients=1) if is_plain else None
        call = self._plans.get(key) if key is not None else None
        if call is None:
            return self._recorded_value_and_grad(x, y, mask, valid, ranges)
        if call.notice is not None:
            warn(call.notice)
        with torch.no_grad():
            dtype = x.dtype
            if call.converts:
                x, y = readable_images(x, y, call.backend)
            value, saved = call.plan.forward(x, y)
            per_image = self.request.reduction == "none"
            grad = self._grad_of_planes(value) if per_image else None
            (gradient,) = call.plan.backward(saved, grad, x, y)
            if gradient.dtype != dtype:
                gradient = gradient.to(dtype)
            return self._per_image(value) if per_image else value, gradient

    def _recorded_value_and_grad(self, x: Tensor, y: Tensor, *extras: Any) -> tuple[Tensor, Tensor]:
        """`value_and_grad` through autograd, for calls with extras and those without a plan yet."""
        _validation.check_differentiable("x", x)
        _validation.check_plain_tensor("y", y)
        tensors = [tensor for tensor in (x, y, *extras) if isinstance(tensor, Tensor)]
        if not torch.compiler.is_compiling() and any(map(Tensor.is_inference, tensors)):
            copies = [a.clone() if isinstance(a, Tensor) else a for a in (x, y, *extras)]
            return self._recorded_value_and_grad(*copies)
        with torch.enable_grad():
            # The call on a leaf leaves the plan that the next call finds.
            leaf = x.detach().requires_grad_()
            recorded = self(leaf, y.detach(), *extras)
            value = recorded.detach()
            (gradient,) = torch.autograd.grad(recorded.sum(), leaf)
        memory = torch.empty_like(x)
        if gradient.stride() != memory.stride():
            # The operations of a masked mix may have laid it out otherwise.
            gradient = memory.copy_(gradient)
        return value, gradient

    def with_ssim(
        self, x: Tensor, y: Tensor, mask: Any = None, valid: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The means of SSIM and of MS-SSIM. The options are those of MS-SSIM."""
        key = call_key(x, y, mask, valid, None)
        prepared = self._prepare(x, y, mask, valid, None)
        request = replaced(prepared.request, reduction="both")
        auxiliary, backend = prepared.extras.auxiliary, self._options.backend
        values = evaluate(x, y, auxiliary, request, backend, self._plans_of_both, key)
        ssim, ms_ssim = values.unbind()
        return ssim, ms_ssim

    def terms(self, x: Tensor, y: Tensor, mask: Any, valid: Any, ranges: Any) -> Terms:
        """A mix with its terms, each a scalar, or ``(N,)`` with ``reduction="none"``."""
        if any(map(shards.is_distributed, (x, y, mask, valid, ranges))):
            return self._terms_of_shards(x=x, y=y, mask=mask, valid=valid, data_range=ranges)
        key = call_key(x, y, mask, valid, ranges)
        prepared = self._prepare(x, y, mask, valid, ranges)
        if prepared.extras.is_weighted:
            return self._weighted_terms(key, x, y, prepared)
        request = replaced(prepared.request, reduction="levels")
        plans, backend = self._terms_plans, self._options.backend
        means = evaluate(x, y, prepared.extras.auxiliary, request, backend, plans, key)
        similarity = combine(means[:-1], replaced(request, reduction="none", mix=None))
        structural, l1 = 1 - similarity.mean(1), means[-1].mean(1) / request.definition.length
        if self._options.reduction != "none":
            structural, l1 = structural.mean(), l1.mean()
        return self._mixed(l1, structural)

    def _checked_call(
        self, key: Key | None, x: Tensor, y: Tensor, mask: Any, valid: Any, ranges: Any
    ) -> Tensor:
        """The value of a call without a plan. Its tensors are checked, and the plan is kept."""
        if any(map(shards.is_distributed, (x, y, mask, valid, ranges))):
            evaluate_images = self._without_reduction()
            (values,) = shards.evaluate_shards(
                lambda *local: [evaluate_images(*local)],
                self._options.reduction,
                **{"x": x, "y": y, "mask": mask, "valid": valid, "data_range": ranges},
            )
            return values
        prepared = self._prepare(x, y, mask, valid, ranges)
        request, extras, notice = prepared
        if extras.is_weighted and request.mix is not None:
            return self._weighted_terms(key, x, y, prepared).loss
        backend, plans = self._options.backend, self._plans
        value = evaluate(x, y, extras.auxiliary, request, backend, plans, key, notice)
        return self._per_image(value) if request.reduction == "none" else value

    def _prepare(self, x: Tensor, y: Tensor, mask: Any, valid: Any, ranges: Any) -> _Prepared:
        """Checks a call, and fits the request to its images; warns if levels are left out."""
        options, request = self._options, self.request
        if ranges is not None:
            request = self._request_in_ranges
        data_range = options.data_range if ranges is None else None
        _validation.check_images(x, y, request.definition, data_range)
        request = replaced(request, definition=for_axes(request.definition, x.dim() - 2))
        notice = None
        if request.exponents:
            exponents, notice = _validation.fit_levels(
                *(request.exponents, options.levels, x),
                [len(window) for window in request.definition.windows],
            )
            request = replaced(request, exponents=exponents)
        if notice is not None:
            warn(notice)
        if ranges is not None:
            _validation.check_ranges(ranges, x)
        if valid is not None:
            _validation.check_valid(valid, x)
        if mask is not None:
            _validation.check_mask(mask, x)
        mask, valid, ranges = [_validation.kept(values) for values in (mask, valid, ranges)]
        extras = self._read_extras(x, y, mask, valid, ranges, request)
        return _Prepared(request, extras, notice)

    def _read_extras(
        self,
        x: Tensor,
        y: Tensor,
        mask: Tensor | None,
        valid: Tensor | None,
        ranges: Tensor | None,
        request: Request,
    ) -> _Extras:
        """A mask, valid pixels and ranges as backends read them. Their values are checked here."""
        dtype = compute_dtype(x, y)
        if ranges is not None:
            ranges = _validation.ranges_of_images(ranges, dtype)
        if mask is None and valid is None:
            auxiliary = NO_AUXILIARY if ranges is None else Auxiliary(ranges=(ranges,))
            return _Extras(auxiliary, False, None, None, ranges)
        if valid is not None:
            valid = _validation.valid_pixels(valid, x)
        if mask is not None:
            mask = _validation.mask_weights(mask, x, dtype)
        auxiliary = _masks.auxiliary_tensors(
            mask, valid, ranges, request, dtype, self._options.backend
        )
        return _Extras(auxiliary, True, mask, valid, ranges)

    def _weighted_terms(self, key: Key | None, x: Tensor, y: Tensor, prepared: _Prepared) -> Terms:
        """A mix of weighted means: of pixels for L1, and of windows for the similarity."""
        request = replaced(prepared.request, mix=None)
        # This plan computes only the structural term. In `_plans` the next call would find it and
        # take its value for that of the mix.
        backend, plans, extras = self._options.backend, self._terms_plans, prepared.extras
        structural = evaluate(x, y, extras.auxiliary, request, backend, plans, key)
        distance = _masks.weighted_distance(x, y, extras.mask, extras.valid, extras.ranges)
        # Divided before the mean: torch.func.jvp would give a divided scalar a tangent in float64.
        distance = distance / request.definition.length
        if request.reduction == "none":
            structural = 1 - structural.mean(1)
        else:
            distance = distance.mean()
        return self._mixed(distance, structural)

    def _without_reduction(self) -> Evaluator:
        """The evaluator with the same options, except that it gives a value for each image."""
        return evaluator(replaced(self._options, reduction="none"))

    def _terms_of_shards(self, **batches: Any) -> Terms:
        """The terms of images that are distributed over processes."""
        terms, reduction = self._without_reduction().terms, self._options.reduction
        return Terms(*shards.evaluate_shards(terms, reduction, **batches))

    def _mixed(self, l1: Tensor, structural: Tensor) -> Terms:
        return Terms(torch.lerp(l1, structural, self._options.structural_weight), l1, structural)

    def _per_image(self, value: Tensor) -> Tensor:
        """The mean over channels. A mix is a loss already; a similarity may have to become one."""
        value = value.mean(1)
        return 1 - value if self._options.loss and self.request.mix is None else value

    def _grad_of_planes(self, value: Tensor) -> Tensor:
        """The gradient of the sum of `_per_image` over all images, for each plane's value."""
        sign = 1 if self.request.mix is not None else -1
        return torch.full_like(value, sign / value.shape[1])


class _Extras(NamedTuple):
    """A mask, valid pixels and ranges that have been checked.

    Attributes:
        auxiliary: the tensors that backends read, which were made from the others.
        is_weighted: whether the means are weighted: by the mask, or by the valid pixels.
        mask: the weight of each pixel, or ``None``.
        valid: the pixels that exist, or ``None`` for all.
        ranges: the range of each image, or ``None``.
    """

    auxiliary: Auxiliary
    is_weighted: bool
    mask: Tensor | None
    valid: Tensor | None
    ranges: Tensor | None


class _Prepared(NamedTuple):
    """A call that has been checked.

    Attributes:
        request: the request for these images.
        extras: the mask, the valid pixels and the ranges, checked.
        notice: a warning that each such call gives, or ``None``.
    """

    request: Request
    extras: _Extras
    notice: str | None


def evaluator(options: Options) -> Evaluator:
    """The evaluator of these options: the same one for the same options, if these can be hashed."""
    for name in SEQUENCES:
        if not isinstance(getattr(options, name), _UNCHANGING):
            options = replaced(options, **{name: _validation.as_tuple(getattr(options, name))})
    if torch.compiler.is_compiling():
        return Evaluator(options)
    try:
        return _evaluator(options, _types(options))
    except TypeError:
        # An option is not accepted, or accepted and not hashable.
        pass
    # Outside the handler, where a further error would be shown together with the first one.
    return Evaluator(options)


@functools.lru_cache(maxsize=256)
def _evaluator(options: Options, types: Any) -> Evaluator:
    return Evaluator(options)


def _types(options: Options) -> tuple[Any, ...]:
    """The types of all options, because ``True == 1``, and only 1 is accepted as a number."""
    nested = [tuple(map(type, option)) for option in options if isinstance(option, tuple)]
    return (*map(type, options), *nested)


def _request(options: Options) -> Request:
    """The request that the options spell, each of them checked."""
    definition = _validation.settings(**{name: getattr(options, name) for name in _DEFINING})
    _validation.check_choice("reduction", options.reduction, _validation.REDUCTIONS)
    _validation.check_choice("backend", options.backend, BACKENDS)
    mix: tuple[float, float] | None = None
    exponents: tuple[float, ...] = ()
    if options.structural_weight is not None:
        weight = options.structural_weight
        mix = weight, (1 - weight) / definition.length
    if options.weights is not ...:
        exponents = _validation.level_weights(options.weights)
        _validation.check_levels(options.levels, len(exponents))
        _validation.check_choice("normalize", options.normalize, _validation.NORMALIZATIONS)
    reduction = "loss" if options.loss and options.reduction == "mean" else options.reduction
    reduction = "map" if options.as_map else reduction
    return Request(definition, exponents, options.normalize, mix, reduction)
