"""The interface of a backend, and the one convention that its gradients follow.

The premultiplied gradient. A loss ``1 - mean(SSIM)`` sends the same upstream gradient to the
similarity of every plane: ``-1 / (N C)``, `plane_gradient`. Training almost always asks for this
one. A backend therefore computes the gradients during the forward pass and stores them already
multiplied by it. For one level the usual backward pass has nothing left to do.

Its sign is negative, because similarity rises while a loss falls. Its size is one over the number
of planes. The forward pass multiplies. The backward pass divides: it is given an upstream gradient
``g`` of the requested value and scales what is stored by ``g / premultiplied_by``, a factor of 1 in
the usual case. Gradients of several levels are stored each at its own size; the backward pass
scales them by their factor in the product and adds them up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .request import Request, plane_gradient


class Layout(NamedTuple):
    """Everything of a tensor that a plan depends on."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: bool


def layout_of(tensor: Tensor) -> Layout:
    """The layout of a tensor; it is aligned if its memory begins at a multiple of 16 bytes."""
    return Layout(tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr() % 16 == 0)


class Auxiliary(NamedTuple):
    """Tensors beside the two images, or in a plan their layouts; each sequence may be empty.

    Attributes:
        weights: for each level the weight of each value of the map, ``(N, 1, H', W')``; empty for
            the plain mean. A ``"map"`` has none.
        totals: for each level of ``weights`` the sum of each image's, ``(N,)``; empty for the GPU
            backend, whose weights sum to one for each image.
        ranges: one tensor ``(N,)`` with the range of each image, in the dtype of the computation.
        valid: for each level the pixels that exist, boolean ``(N, 1, H, W)``. Values elsewhere
            must have no influence.
        coverage: for each level of ``valid`` the reciprocal of the window's weight over valid
            pixels, ``(N, 1, H', W')``; zero where it has none. It is empty for images
            ``(N, C, H, W)`` on a CPU, where the march and the reference compute it. Volumes and
            Triton's kernels get it.
    """

    weights: Sequence[Any] = ()
    totals: Sequence[Any] = ()
    ranges: Sequence[Any] = ()
    valid: Sequence[Any] = ()
    coverage: Sequence[Any] = ()

    @property
    def layouts(self) -> Auxiliary:
        """The layouts of all tensors."""
        return Auxiliary(*[tuple(map(layout_of, tensors)) for tensors in self])


NO_AUXILIARY = Auxiliary()


def flat(auxiliary: Auxiliary) -> list[Any]:
    """All of the tensors, one after the other."""
    return [tensor for tensors in auxiliary for tensor in tensors]


class Forward(NamedTuple):
    """The result of a forward pass.

    Attributes:
        value: the requested value.
        saved: the tensors that the backward pass needs, in an order that only the plan knows. With
            ``reduction="levels"`` they are the premultiplied gradients of each level's means with
            respect to that level's images, finest first, those of the first image before those of
            the second.
    """

    value: Tensor
    saved: Sequence[Tensor]


class Plan(Protocol):
    """Everything about a call that its layouts and its request decide: tasks, launches, memory.

    A plan may be used by several threads at once.
    """

    request: Request

    def forward(self, x: Tensor, y: Tensor, auxiliary: Auxiliary = NO_AUXILIARY) -> Forward:
        """Computes the value, and the premultiplied gradients that are requested.

        A ``"map"`` has none: its backward pass computes the gradients.

        Args:
            x: the first image, which has the gradient if there is one.
            y: the second image.
            auxiliary: the tensors beside them, with the layouts that the plan was made for.
        """
        ...

    def backward(
        self,
        saved: Sequence[Tensor],
        grad: Tensor | None,
        x: Tensor,
        y: Tensor,
        auxiliary: Auxiliary = NO_AUXILIARY,
    ) -> Sequence[Tensor]:
        """The gradients of the images, as many as are requested.

        It works in place: what is saved can be used once. A gradient has the image's layout, and
        its dtype or, for float16, float32: a pixel's part of a mean is less than float16 holds.

        Args:
            saved: `Forward.saved`.
            grad: the upstream gradient of the value, in its shape; ``None`` for the one that the
                saved gradients hold already.
            x: the first image.
            y: the second image.
            auxiliary: the tensors beside them.
        """
        ...


class Backend(Protocol):
    """A way to run the computation; `reference` defines it. ``cpu`` and ``gpu`` are the two."""

    def unsupported(self, x: Tensor, y: Tensor, request: Request) -> str | None:
        """The reason why the backend is not meant for this call, or ``None``."""
        ...

    def unavailable(self, device: torch.device) -> str | None:
        """The reason why the backend cannot run here, such as a missing package, or ``None``."""
        ...

    def plan(
        self,
        x: Layout,
        y: Layout,
        auxiliary: Auxiliary,
        request: Request,
        device: torch.device,
    ) -> Plan:
        """The plan of a call. Nothing here remembers it: `plans` does."""
        ...

    def coarse_gradient(self, image: Tensor, shape: Sequence[int]) -> Tensor:
        """Memory for the gradient of ``image`` halved to this shape, as ``"levels"`` returns it."""
        ...


def gradient_memory(image: Tensor) -> Tensor:
    """Memory for a stored gradient of ``image``.

    A pixel's part of a mean is less than float16 holds, and a scaled loss may need it.
    """
    dtype = torch.float32 if image.dtype == torch.float16 else image.dtype
    return torch.empty_like(image, dtype=dtype)


def premultiplied_by(request: Request, shape: Sequence[int]) -> float:
    """The upstream gradient of the requested value that stored gradients already hold."""
    if request.reduction == "levels" or (request.reduction == "none" and request.mix is None):
        return plane_gradient(shape)
    if request.reduction == "none":
        return -plane_gradient(shape)
    return -1.0 if request.reduction == "mean" else 1.0
