"""The map of SSIM on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import NO_AUXILIARY, Auxiliary, Forward, Layout, flat, layout_of
from ..request import Request
from .launch import Allocation, Buffer, Image, Launch, Launches
from .level import Level, beside, map_shape, no_total, window_size
from .levels import auxiliary_names, gradient_of, launches_of_level, plan_of_level
from .programs import Machine, Workload


class MapPlan:
    """A call for the map; `Plan` has the interface."""

    def __init__(
        self,
        images: tuple[Layout, Layout],
        auxiliary: Auxiliary,
        request: Request,
        device: torch.device,
        machine: Machine,
    ) -> None:
        """Plans the launch of the forward pass; those of a backward follow with its gradient."""
        self.request = request
        self._images, self._auxiliary = images, auxiliary
        self._device, self._machine = device, machine
        self._forward = Launches(self._launches(None), device, self._inputs([]), ["map"])
        self._backward: dict[tuple[object, ...], Launches] = {}

    def forward(self, x: Tensor, y: Tensor, auxiliary: Auxiliary = NO_AUXILIARY) -> Forward:
        """Launches the kernel that writes the map."""
        (value,) = self._forward(x, y, *flat(auxiliary))
        return Forward(value, ())

    def backward(
        self,
        saved: Sequence[Tensor],
        grad: Tensor | None,
        x: Tensor,
        y: Tensor,
        auxiliary: Auxiliary = NO_AUXILIARY,
    ) -> list[Tensor]:
        """Launches the kernels of the gradients: each value of the map has its own upstream one."""
        assert grad is not None  # A map stores no gradient: ``None`` has no meaning for it.
        key = (grad.stride(), grad.data_ptr() & 15)
        launches = self._backward.get(key)
        if launches is None:
            planned = self._launches(layout_of(grad))
            outputs = [f"of_{name}" for name in "xy"[: self.request.gradients]]
            launches = Launches(planned, self._device, self._inputs(["grad"]), outputs)
            self._backward[key] = launches
        return launches(x, y, grad, *flat(auxiliary))

    def _inputs(self, more: list[str]) -> list[str]:
        return ["x", "y", *more, *auxiliary_names(self._auxiliary)]

    def _launches(self, grad: Layout | None) -> list[Launch]:
        """The launches that write the map, or the gradients for an upstream gradient."""
        settings, shape = self.request.definition, self._images[0].shape
        images = [Image(Buffer(name), *a[1:]) for name, a in zip("xy", self._images, strict=True)]
        gradients, allocations = [], [Allocation("map", map_shape(shape, settings))]
        tensors = beside(0, self._auxiliary)
        if grad is not None:
            found = [
                gradient_of(f"of_{name}", name, layout, None)
                for name, layout in zip("xy", self._images, strict=True)
            ][: self.request.gradients]
            gradients, allocations = [a for a, _ in found], [a for _, a in found]
            tensors = tensors._replace(weight=Image(Buffer("grad"), *grad[1:3]))
        window, padding = window_size(settings), settings.padding
        work = Workload((shape,), window, padding, len(gradients), weighted=True, is_map=True)
        level = Level(
            number=0,
            images=images,
            beside=tensors,
            gradients=gradients,
            sums=images[0].address,
            abs_difference_sums=None,
            pitch=0,
            weight_total=0.0,
            gradient_scale=1.0,
            abs_difference_scale=None,
            contrast_only=False,
            total=no_total("x"),
            allocations=tuple(allocations),
            frees=(),
            is_map=True,
        )
        plan = plan_of_level(work, settings, self._machine)
        return launches_of_level(level, plan, settings, self._machine)
