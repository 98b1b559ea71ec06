"""The networks of the feature losses, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
        name: the name in the literature: ``relu3_2`` follows the second convolution of block 3.
        layer_type: ``"conv"``, ``"norm"``, ``"relu"``, ``"pool"`` or ``"fire"``, SqueezeNet's
            module: a convolution to few channels, then two side by side to many.
        position: the layer's index in torchvision's ``features``.
        shape: the weight's shape: ``(out, in, size, size)`` of a convolution, ``(channels,)`` of a
            normalisation, ``(out, in, squeezed)`` of a fire module, and ``()`` of all others.
        size: the side of the window.
        stride: the step between windows.
        padding: the zeros on each side.
        partial: whether a window may reach beyond the last pixel.
    """

    name: str
    layer_type: str
    position: int
    shape: tuple[int, ...] = ()
    size: int = 1
    stride: int = 1
    padding: int = 0
    partial: bool = False

    def output_side(self, side: int) -> int:
        """The height or width of the output, for an input of that height or width."""
        room = side + 2 * self.padding - self.size
        return (-(-room // self.stride) if self.partial else room // self.stride) + 1

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The keys in the state dict of torchvision's ``features``, and the tensors' shapes."""
        parts: dict[str, tuple[int, ...]] = {}
        if self.layer_type == "conv":
            parts = {"weight": self.shape, "bias": self.shape[:1]}
        elif self.layer_type == "norm":
            names = ("weight", "bias", "running_mean", "running_var")
            parts = dict.fromkeys(names, self.shape)
        elif self.layer_type == "fire":
            out, channels, squeezed = self.shape
            for name, weight in (
                ("squeeze", (squeezed, channels, 1, 1)),
                ("expand1x1", (out // 2, squeezed, 1, 1)),
                ("expand3x3", (out // 2, squeezed, 3, 3)),
            ):
                parts |= {f"{name}.weight": weight, f"{name}.bias": weight[:1]}
        for part, shape in parts.items():
            yield f"{self.position}.{part}", shape


def _vgg(convolutions: Sequence[int], norm: bool) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    channels = 3
    for block, (count, width) in enumerate(
        zip(convolutions, (64, 128, 256, 512, 512), strict=True), 1
    ):
        for number in range(1, count + 1):
            suffix = f"{block}_{number}"
            shape = (width, channels, 3, 3)
            layers.append(Layer(f"conv{suffix}", "conv", len(layers), shape, 3, 1, 1))
            if norm:
                layers.append(Layer(f"norm{suffix}", "norm", len(layers), (width,)))
            layers.append(Layer(f"relu{suffix}", "relu", len(layers)))
            channels = width
        layers.append(Layer(f"pool{block}", "pool", len(layers), (), 2, 2))
    return tuple(layers)


BACKBONES: dict[str, tuple[Layer, ...]] = {
    "vgg16": _vgg((2, 2, 3, 3, 3), False),
    "vgg16_bn": _vgg((2, 2, 3, 3, 3), True),
    "vgg19": _vgg((2, 2, 4, 4, 4), False),
    "vgg19_bn": _vgg((2, 2, 4, 4, 4), True),
    "alexnet": (
        Layer("conv1", "conv", 0, (64, 3, 11, 11), 11, 4, 2),
        Layer("relu1", "relu", 1),
        Layer("pool1", "pool", 2, (), 3, 2),
        Layer("conv2", "conv", 3, (192, 64, 5, 5), 5, 1, 2),
        Layer("relu2", "relu", 4),
        Layer("pool2", "pool", 5, (), 3, 2),
        Layer("conv3", "conv", 6, (384, 192, 3, 3), 3, 1, 1),
        Layer("relu3", "relu", 7),
        Layer("conv4", "conv", 8, (256, 384, 3, 3), 3, 1, 1),
        Layer("relu4", "relu", 9),
        Layer("conv5", "conv", 10, (256, 256, 3, 3), 3, 1, 1),
        Layer("relu5", "relu", 11),
        Layer("pool5", "pool", 12, (), 3, 2),
    ),
    "squeezenet1_1": (
        Layer("conv1", "conv", 0, (64, 3, 3, 3), 3, 2),
        Layer("relu1", "relu", 1),
        Layer("pool1", "pool", 2, (), 3, 2, partial=True),
        Layer("fire2", "fire", 3, (128, 64, 16)),
        Layer("fire3", "fire", 4, (128, 128, 16)),
        Layer("pool3", "pool", 5, (), 3, 2, partial=True),
        Layer("fire4", "fire", 6, (256, 128, 32)),
        Layer("fire5", "fire", 7, (256, 256, 32)),
        Layer("pool5", "pool", 8, (), 3, 2, partial=True),
        Layer("fire6", "fire", 9, (384, 256, 48)),
        Layer("fire7", "fire", 10, (384, 384, 48)),
        Layer("fire8", "fire", 11, (512, 384, 64)),
        Layer("fire9", "fire", 12, (512, 512, 64)),
    ),
}
"""Torchvision's networks of Simonyan and Zisserman 2015, Krizhevsky 2014 and Iandola et al. 2016,
without classifier."""


def widths(backbone: str) -> dict[str, int]:
    """The number of channels of each layer's output, by the layer's name."""
    found, width = {}, 3
    for layer in BACKBONES[backbone]:
        width = layer.shape[0] if layer.shape else width
        found[layer.name] = width
    return found
