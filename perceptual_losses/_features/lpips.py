"""LPIPS's distance between features, weighted by channel: its formula, and which kernels run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._runtime.tracing import active_transform
from . import lpips_cpu, lpips_gpu, safetensors
from .networks import widths
from .presets import LPIPS_LAYERS
from .weights import StateDict, linear_entries, read

EPSILON = 1e-10
"""The number that the lpips package adds to the norm of features."""


def linear_weights(linear: Any, network: Any, backbone: str) -> dict[str, Tensor]:
    """LPIPS's weights of channels ``(C,)`` by the names of the layers.

    Args:
        linear: ``"lpips"`` for the calibrated weights, the path of a file, a state dict, or
            ``None`` for weights of 1.
        network: the network's weights. If they are a `StateDict` with linear weights in it,
            ``"lpips"`` stands for these.
        backbone: the network that the linear weights were calibrated for.
    """
    channels = widths(backbone)
    layers = {name: channels[name] for name in LPIPS_LAYERS[backbone]}
    if linear is None:
        return {name: torch.ones(width, device="cpu") for name, width in layers.items()}
    if isinstance(linear, str) and linear == "lpips":
        in_network = isinstance(network, StateDict) and linear_entries(network)
        state = network if in_network else _calibrated(backbone)
    else:
        state = read("linear", linear)
    entries, found = linear_entries(state), {}
    for index, (name, width) in enumerate(layers.items()):
        key, weight = entries.pop(index, (f"lin{index}.model.1.weight", None))
        shape = (1, width, 1, 1)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
            given = tuple(weight.shape) if isinstance(weight, Tensor) else "missing"
            raise ValueError(
                f"{state.source} does not fit {backbone}: {key!r} is {given} and not {shape}: pass "
                "LPIPS's linear weights for that network, such as the file in lpips's weights/v0.1"
            )
        found[name] = weight.detach().flatten()
    if entries:
        raise ValueError(
            f"{state.source} does not fit {backbone}: {next(iter(entries.values()))[0]!r} is not "
            f"part of it, which has {len(layers)} layers"
        )
    return found


def _calibrated(backbone: str) -> StateDict:
    """The linear weights that come with the package, for one network."""
    entries = safetensors.read(Path(__file__).parent / "lpips_weights" / "v0.1.safetensors")
    own = {
        name.removeprefix(f"{backbone}."): value
        for name, value in entries.items()
        if name.startswith(f"{backbone}.")
    }
    return StateDict(own, "the package's file of linear weights")


def layer_distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """LPIPS of one layer, ``(N,)``: the weighted squared difference of unit vectors of channels.

    It is summed over channels and averaged over pixels.

    Args:
        a: features ``(N, C, H, W)`` of the first images.
        b: features of the second images, of the same shape.
        weight: the channels' weights ``(C,)``.
    """
    if torch.compiler.is_compiling() or active_transform() is not None:
        return layer_distance_formula(a, b, weight)
    out: Tensor = _LayerDistance.apply(a, b, weight)  # type: ignore[no-untyped-call]
    return out


def layer_distance_formula(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The specification of `layer_distance`, by torch's operations."""
    return pixel_distances(a, b, weight).mean((1, 2, 3))


def pixel_distances(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The distance of each pixel's features, ``(N, 1, H, W)``, whose mean is `layer_distance`."""
    difference = _normalize(a) - _normalize(b)
    weight = weight.to(difference.dtype)[:, None, None]
    return (weight * difference.square()).sum(1, keepdim=True)


def _normalize(feature: Tensor) -> Tensor:
    """Features with norm 1 at each pixel, or 0; NaN where their squares overflow."""
    feature = feature.to(torch.promote_types(feature.dtype, torch.float32))
    squared = feature.square().sum(1, keepdim=True)
    # An infinite norm would make the features zero, and so all images equal.
    squared = torch.where(squared.isinf(), torch.nan, squared)
    # `where` comes twice, because a gradient of NaN would pass through the branch not taken.
    is_zero = squared == 0
    norm = torch.where(is_zero, torch.ones_like(squared), squared).sqrt()
    return torch.where(is_zero, torch.zeros_like(feature), feature / (norm + EPSILON))


def _kernels(*tensors: Tensor) -> Any:
    """The module whose kernels take these tensors, or ``None``."""
    return next((module for module in (lpips_cpu, lpips_gpu) if module.suits(*tensors)), None)


class _LayerDistance(torch.autograd.Function):
    """`layer_distance_formula`, which keeps only its inputs for the backward."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, weight)
        kernels = _kernels(a, b, weight)
        if kernels is None:
            return layer_distance_formula(a, b, weight)
        value: Tensor = kernels.distance(a, b, weight, EPSILON)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b, weight = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        create_graph = torch.is_grad_enabled()
        kernels = None if create_graph else _kernels(a, b, weight, grad)
        if kernels is not None:
            return *kernels.gradients(a, b, weight, grad, needed, EPSILON), None
        with torch.enable_grad():
            # Views, so that features compared with themselves stay two inputs.
            a, b = (f.view_as(f) if create_graph else f.detach().requires_grad_() for f in (a, b))
            inputs = [feature for feature, need in zip((a, b), needed, strict=True) if need]
            value = layer_distance_formula(a, b, weight)
            gradients = iter(torch.autograd.grad(value, inputs, grad, create_graph=create_graph))
        return *(next(gradients) if need else None for need in needed), None
