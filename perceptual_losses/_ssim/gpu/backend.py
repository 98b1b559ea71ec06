"""The GPU backend: Triton kernels, for tensors read where and as they lie."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backend import (
    NO_AUXILIARY,
    Auxiliary,
    Forward,
    Layout,
    flat,
    layout_of,
    premultiplied_by,
)
from ..request import Request, num_levels
from . import combine, levels
from .launch import Launches, in_rows
from .map import MapPlan
from .programs import Machine
from .tiles import LARGEST_WINDOW

INSTALLED = importlib.util.find_spec("triton") is not None
OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (7, 5)


def unsupported(x: Tensor, y: Tensor, request: Request) -> str | None:
    """The reason why the backend is not meant for this call, or ``None``."""
    if x.device.type not in ("cuda", "xpu") and not (x.device.type == "cpu" and _interpreted()):
        return f"the images are on {x.device} and it runs on GPUs"
    if torch.float64 in (x.dtype, y.dtype):
        return "it computes in float32, and the images are float64"
    if torch.bfloat16 in (x.dtype, y.dtype) and not torch.compiler.is_compiling():
        capability = _capability(x.device)
        if capability is not None and capability < (8, 0):
            return f"{x.device} has no bfloat16: pass float16 or float32 images"
    sizes = [len(window) for window in request.definition.windows]
    if max(sizes) > LARGEST_WINDOW:
        return f"its windows have at most {LARGEST_WINDOW} pixels, not {max(sizes)}"
    return None


def unavailable(device: torch.device) -> str | None:
    """The reason why the backend cannot run on this device, or ``None``."""
    if not INSTALLED:
        return "Triton is not installed"
    if torch.compiler.is_compiling():
        return None
    return _broken() or _too_old(device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _broken() -> str | None:
    try:
        import triton

        version = triton.__version__
        # Older compilers do not take the kernels' tuples.
        if tuple(map(int, version.split(".")[:2])) < OLDEST_TRITON:
            return f"Triton {version} is installed and 3.6 is the oldest that compiles the kernels"
        from . import kernels  # noqa: F401
    except Exception as error:  # Whatever a broken installation raises is the reason.
        return f"Triton cannot be used ({type(error).__name__}: {error})"
    return None


def _too_old(device: torch.device) -> str | None:
    capability = _capability(device)
    if capability is None or capability >= OLDEST_CAPABILITY:
        return None
    found, oldest = (".".join(map(str, number)) for number in (capability, OLDEST_CAPABILITY))
    return f"{device} has compute capability {found}, and {oldest} is the oldest it runs on"


@functools.cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of one of NVIDIA's GPUs."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def coarse_gradient(image: Tensor, shape: Sequence[int]) -> Tensor:
    """Memory for the gradient of ``image`` halved to this shape."""
    return in_rows(image, shape)


def plan(
    x: Layout, y: Layout, auxiliary: Auxiliary, request: Request, device: torch.device
) -> GpuPlan | MapPlan:
    """The plan of a call on images of these layouts, in half precision or float32."""
    if request.reduction == "map":
        return MapPlan((x, y), auxiliary, request, device, machine_of(device))
    return GpuPlan(x, y, auxiliary, request, device)


class GpuPlan:
    """A call on a GPU; `Plan` has the interface."""

    def __init__(
        self,
        x: Layout,
        y: Layout,
        auxiliary: Auxiliary,
        request: Request,
        device: torch.device,
    ) -> None:
        """Plans the launches of the forward pass; those of a backward follow with its gradient."""
        self.request = request
        self._device, self._machine = device, machine_of(device)
        self._premultiplied_by = premultiplied_by(request, x.shape)
        # A mix of one level stores the gradient of L1 with its own. For several levels, and for the
        # means of levels, the backward pass adds it.
        in_level = not request.exponents and request.reduction != "levels"
        self._adds_l1 = request.mix is not None and not in_level
        self._auxiliary = auxiliary
        self._combined = bool(request.exponents) and request.reduction != "levels"
        launches = levels.forward_launches(self._machine, device, x, y, auxiliary, request)
        inputs = ["x", "y", *levels.auxiliary_names(auxiliary)]
        saved = ["derivatives"] if self._combined else []
        for name in "xy"[: request.gradients]:
            saved += [f"of_{name}{j}" for j in range(num_levels(request))]
        value = "value" if self._combined else "means"
        self._forward = Launches(launches, device, inputs, [value, *saved])
        self._backward: dict[tuple[object, ...], Launches] = {}
        self._usual_grad: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor, auxiliary: Auxiliary = NO_AUXILIARY) -> Forward:
        """Launches the kernels of the forward pass, which write the premultiplied gradients."""
        if auxiliary is NO_AUXILIARY:
            value, *saved = self._forward(x, y)
        else:
            value, *saved = self._forward(x, y, *flat(auxiliary))
        return Forward(value, saved)

    def backward(
        self,
        saved: Sequence[Tensor],
        grad: Tensor | None,
        x: Tensor,
        y: Tensor,
        auxiliary: Auxiliary = NO_AUXILIARY,
    ) -> list[Tensor]:
        """Launches the kernel that scales the gradients in place and adds up the levels."""
        if grad is None:
            if not self._combined:
                return list(saved)
            grad = self._usual()
        factors, gradients = saved[: self._combined], saved[self._combined :]
        per_image = len(gradients) // self.request.gradients
        found = []
        for k in range(self.request.gradients):
            images = ((x, y), (y, x))[k] if self._adds_l1 else ()
            ranges = auxiliary.ranges if self._adds_l1 else ()
            valid = auxiliary.valid[: per_image - 1]
            of_levels = gradients[k * per_image : (k + 1) * per_image]
            tensors = (grad, *factors, *images, *ranges, *valid, *of_levels)
            # Hooks on saved tensors may have given them other strides.
            key = (k, grad.data_ptr() & 15, *map(Tensor.stride, tensors))
            launches = self._backward.get(key)
            if launches is None:
                launches = self._backward[key] = self._plan_backward(grad, images, of_levels)
            launches(*tensors)
            found.append(of_levels[0])
        return found

    def _plan_backward(
        self, grad: Tensor, images: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> Launches:
        layouts = [tuple(map(layout_of, tensors)) for tensors in (gradients, [grad], images)]
        launch = combine.backward_launch(
            *(self._machine, layouts[0], layouts[1][0], layouts[2]),
            auxiliary=self._auxiliary,
            combined=self._combined,
            premultiplied_by=self._premultiplied_by,
        )
        inputs = ["grad", *["derivatives"] * self._combined, *"xy"[: len(images)]]
        inputs += ["ranges0"] * (self._adds_l1 and len(self._auxiliary.ranges))
        inputs += [f"valid{j}" for j in range(len(self._auxiliary.valid) - 1)]
        inputs += [f"level{j}" for j in range(len(gradients))]
        return Launches([launch], self._device, inputs, [])

    def _usual(self) -> Tensor:
        """The upstream gradient that the saved gradients hold already."""
        if self._usual_grad is not None:
            return self._usual_grad
        grad = torch.full((), self._premultiplied_by, device=self._device)
        if self._device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
            self._usual_grad = grad
        return grad


@functools.cache
def machine_of(device: torch.device) -> Machine:
    """The part of a device's properties that launches depend on."""
    if device.type != "cuda":
        # The interpreter does one program after the other. No other device has been measured.
        return Machine(device.type, 1 if device.type == "cpu" else 64)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        architecture = str(properties.gcnArchName)
    else:
        architecture = f"sm_{properties.major}{properties.minor}"
    return Machine(architecture, properties.multi_processor_count)
