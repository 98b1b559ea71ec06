"""Recorded calls and their gradients, in a form in which two of them can be compared."""

from typing import NamedTuple

import standins
import torch


def images(*shape, device="cuda", dtype=torch.float32, gradients=1):
    """Two images, of which the first or both require a gradient."""
    x, y = (torch.empty(shape, device=device, dtype=dtype) for _ in "xy")
    return x.requires_grad_(gradients > 0), y.requires_grad_(gradients > 1)


class Step(NamedTuple):
    """A call, and its gradients for an upstream gradient that was there before.

    Attributes:
        value: the result.
        gradients: the gradients of the images that require one.
        forward: the launches of the call.
        backward: the launches of the gradients.
        blocks: the names of tensors by the numbers of their memory blocks.
    """

    value: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    forward: standins.Recording
    backward: standins.Recording
    blocks: dict[int, str]

    @property
    def launches(self):
        """The Triton launches with all their parameters, which have places for addresses."""
        others = []

        def place(parameter):
            if not parameter.block:
                return parameter.size, parameter.value
            if parameter.block not in others:
                others.append(parameter.block)
            # Blocks without a name are numbered in the order in which kernels get them.
            name = self.blocks.get(parameter.block, others.index(parameter.block))
            return name, parameter.block_bytes, parameter.offset

        return [
            (
                *(event.name, event.function, event.device, event.stream),
                *(event.grid, event.threads, event.bytes),
                tuple(map(place, event.parameters)),
            )
            for event in (*self.forward.triton, *self.backward.triton)
        ]


def take(function, x, y, **options):
    """A step of a loss or of a function."""
    with standins.record() as forward:
        value = function(x, y, **options)
    tensors, gradients = {"x": x, "y": y, "value": value}, ()
    wanted = [image for image in (x, y) if image.requires_grad]
    tensors["upstream"] = torch.ones_like(value)
    with standins.record() as backward:
        if value.requires_grad:
            gradients = torch.autograd.grad(value, wanted, tensors["upstream"])
    tensors |= {f"gradient {number}": gradient for number, gradient in enumerate(gradients)}
    blocks = {standins.block(tensor.data_ptr()): name for name, tensor in tensors.items()}
    return Step(value, gradients, forward, backward, blocks)
