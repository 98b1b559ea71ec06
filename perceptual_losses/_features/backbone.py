"""The frozen networks of the feature losses, as functions of constants."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional, init

from .. import _validation
from .._runtime.warnings import warn
from .frozen import Frozen
from .networks import BACKBONES, Layer, widths
from .weights import StateDict, Weights, imagenet, network_weights, read
from .winograd import convolution, filter_matrices, suits

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's colours: torchvision's weights expect input normalised by them."""


class FeatureExtractor(Frozen):
    """A frozen network that makes features of images, by the names of layers.

    Attributes:
        layers: the names, in the order of the features.
        data_range: the range of the images.
        dtype: the dtype that the network computes in, or ``None`` for that of the model around it.
    """

    def __init__(
        self,
        layers: Sequence[str],
        data_range: float | tuple[float, float],
        dtype: torch.dtype | None,
        mean: Sequence[float] = MEAN,
        deviation: Sequence[float] = DEVIATION,
    ) -> None:
        super().__init__()
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(
                f"dtype={dtype!r}: pass a floating dtype such as torch.bfloat16, or None"
            )
        self.layers, self.data_range, self.dtype = tuple(layers), data_range, dtype
        low, length = _validation.low_and_length(data_range)
        scale = [1 / (length * s) for s in deviation]
        shift = [-low / (length * s) - m / s for m, s in zip(mean, deviation, strict=True)]
        # The CPU, because torch's default device may be the meta device.
        self._keep(
            {
                name: torch.tensor(values, dtype=torch.float32, device="cpu").reshape(3, 1, 1)
                for name, values in (("scale", scale), ("shift", shift))
            }
        )

    def _dtype_of(self, name: str) -> torch.dtype:
        # A dtype that was asked for stays, whatever dtype the model around the network gets.
        if self.dtype is not None:
            return torch.float32 if name in ("scale", "shift") else self.dtype
        return self._place.dtype

    def load(self) -> None:
        """Fetches the network's weights, if they are not there."""

    def check_images(self, name: str, image: Any) -> None:
        """Refuses everything but a batch of images or frames that the network takes."""
        _validation.check_colour_images(name, image, self.data_range)
        if image.device != self.device:
            advice = f"move the loss with it, loss.to({name}.device)"
            if getattr(self, "_is_replica", False):
                advice = (
                    "nn.DataParallel does not copy the network, so call the loss on what it "
                    "returns, outside of the module that it wraps"
                )
            raise ValueError(
                f"{name} is on {image.device} and the network on {self.device}: {advice}"
            )

    def shapes(self, image: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of the features by layer, for images like ``image``; empty if not known."""
        return {}

    def _normalized(self, x: Tensor) -> Tensor:
        """The images, or each frame as an image, with colours normalised for the network."""
        # One channel is broadcast to three here, which takes no copy of its own.
        x = as_images(x)
        scale = self.constant("scale")
        return x.to(scale.dtype) * scale + self.constant("shift")

    def _without_autocast(self) -> contextlib.AbstractContextManager[Any]:
        """A context for the network: without autocast, if its dtype was asked for."""
        return without_autocast(self.device) if self.dtype else contextlib.nullcontext()


class Extractor(FeatureExtractor):
    """Features of a network of `BACKBONES`; `vgg_features` makes and documents it."""

    def __init__(
        self,
        layers: Sequence[str],
        *,
        backbone: str,
        weights: Weights | StateDict,
        data_range: float | tuple[float, float],
        dtype: torch.dtype | None,
        checkpointing: bool,
    ) -> None:
        _validation.check_choice("backbone", backbone, tuple(BACKBONES))
        network = BACKBONES[backbone]
        names = [layer.name for layer in network]
        if not isinstance(layers, (list, tuple)) or not layers:
            raise ValueError(f"layers={layers!r}: pass a list of at least one name, of {names}")
        for name in layers:
            if name not in names:
                raise ValueError(f"{backbone} has no layer {name!r}: pass some of {names}")
        super().__init__(layers, data_range, dtype)
        self.backbone, self.checkpointing = backbone, checkpointing
        self._matrices: dict[str, tuple[Tensor, Tensor, int]] = {}
        deepest = max(names.index(name) for name in layers)
        self._network = network[: deepest + 1]
        self._blocks, self._smallest = _blocks(self._network), _smallest(self._network)
        if isinstance(weights, str) and weights == "imagenet":
            # The first call fetches them: constructing a loss uses neither internet nor disk.
            return
        if weights is None:
            warn(
                f"the features of {backbone} are random: distances between them are not known to "
                "be perceptual. Pass weights='imagenet', a path or a state dict."
            )
            self._keep(_random(self._network))
        else:
            self._adopt(weights if isinstance(weights, StateDict) else read("weights", weights))

    @property
    def loaded(self) -> bool:
        """Whether the network has its weights."""
        return "0.weight" in self._constants

    def load(self) -> None:
        """Fetches ImageNet's weights, unless the network has its weights."""
        if not self.loaded:
            self._adopt(imagenet(self.backbone))

    def _adopt(self, state: StateDict) -> None:
        """Keeps the weights of the layers up to the deepest."""
        weights = network_weights(state, self.backbone, self._network)
        needed = [key for layer in self._network for key, _ in layer.tensors()]
        self._keep({key: weights[key] for key in needed})

    def _move(self) -> None:
        super()._move()
        # Matrices of replaced weights would waste memory.
        kept = getattr(self, "_matrices", {}).items()
        self._matrices = {key: entry for key, entry in kept if entry[0] is self.constant(key)}

    def check_images(self, name: str, image: Any) -> None:
        super().check_images(name, image)
        if min(image.shape[-2:]) < self._smallest:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}, too small for {self._network[-1].name} of "
                f"{self.backbone}: pass images of at least {self._smallest}x{self._smallest}"
            )

    def shapes(self, image: Tensor) -> dict[str, tuple[int, ...]]:
        found = {}
        count = image.shape[0] * (image.shape[2] if image.dim() == 5 else 1)
        channels, sides = widths(self.backbone), list(image.shape[-2:])
        for layer in self._network:
            sides = [layer.output_side(side) for side in sides]
            found[layer.name] = (count, channels[layer.name], *sides)
        return {name: found[name] for name in self.layers}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.check_images("x", x)
        if not self.loaded:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "weights='imagenet' are fetched by the first call, which torch.compile would "
                    "trace: call .load() before compiling"
                )
            self.load()
        with self._without_autocast():
            x = self._normalized(x).to(self._dtype_of("0.weight"))
            # These operations make the images channels_last, and `torch.func` can batch them.
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
            found: dict[str, Tensor] = {}
            for block in self._blocks:
                run = functools.partial(self._run, block)
                if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
                    x, requested = checkpointed(run, x)
                else:
                    x, requested = run(x)
                found.update(requested)
        return {name: found[name] for name in self.layers}

    def _run(self, block: Sequence[Layer], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The output of a block, and the requested features in it."""
        features = {}
        requested, rectified = True, False
        for layer, following in itertools.zip_longest(block, block[1:]):
            key = str(layer.position)
            if layer.layer_type == "conv":
                rectified = layer.name not in self.layers and following.layer_type == "relu"
                x = self._convolve(key, x, rectified, layer.stride, layer.padding)
            elif layer.layer_type == "fire":
                x = self._convolve(f"{key}.squeeze", x, True)
                wide = self._convolve(f"{key}.expand3x3", x, True, padding=1)
                x = torch.cat([self._convolve(f"{key}.expand1x1", x, True), wide], 1)
            elif layer.layer_type == "norm":
                weight, bias, mean, variance = (self.constant(part) for part, _ in layer.tensors())
                x = functional.batch_norm(x, mean, variance, weight, bias)
            elif layer.layer_type == "relu":
                # The rectifier works in place, unless its input is a requested feature.
                x = x if rectified else functional.relu(x, inplace=not requested)
                rectified = False
            else:
                x = functional.max_pool2d(x, layer.size, layer.stride, ceil_mode=layer.partial)
            requested = layer.name in self.layers
            if requested:
                features[layer.name] = x
        return x, features

    def _convolve(
        self, key: str, x: Tensor, rectify: bool, stride: int = 1, padding: int = 0
    ) -> Tensor:
        """A convolution by the weights of that key, and a rectifier after it if asked for."""
        weight, bias = self.constant(f"{key}.weight"), self.constant(f"{key}.bias")
        if suits(x, weight):
            return convolution(x, weight, self._filter_matrices(key), bias, rectify)
        x = functional.conv2d(x, weight, bias, stride, padding)
        return functional.relu(x, inplace=True) if rectify else x

    def _filter_matrices(self, key: str) -> Tensor:
        """The matrices that `convolution` takes, kept for as long as the weight is the same."""
        weight = self.constant(f"{key}.weight")
        source, matrices, version = self._matrices.get(f"{key}.weight", (None, None, None))
        if matrices is None or source is not weight or version != _version(weight):
            with torch.inference_mode(False):  # A later call may save them for its backward.
                matrices = filter_matrices(weight)
            self._matrices[f"{key}.weight"] = weight, matrices, _version(weight)
        return matrices

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrices": {}}

    def extra_repr(self) -> str:
        return (
            f"layers={self.layers}, backbone={self.backbone!r}, data_range={self.data_range}, "
            f"dtype={self.dtype}, loaded={self.loaded}"
        )


def as_images(x: Tensor) -> Tensor:
    """Frames ``(N, C, T, H, W)`` as images ``(N T, C, H, W)``; images as they are."""
    return x.movedim(2, 1).flatten(0, 1) if x.dim() == 5 else x


def checkpointed(function: Any, *arguments: Any) -> Any:
    """The function's result, whose intermediate values are computed again in the backward."""
    # Imported late: `import torch` doesn't load it.
    from torch.utils.checkpoint import checkpoint

    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _version(weight: Tensor) -> int:
    """The number of in-place changes of the weight, or 0 where torch doesn't count them."""
    return 0 if weight.is_inference() else weight._version


def _blocks(network: tuple[Layer, ...]) -> tuple[tuple[Layer, ...], ...]:
    """The layers in blocks, each of which ends with a pooling."""
    ends = [index + 1 for index, layer in enumerate(network) if layer.layer_type == "pool"]
    bounds = itertools.pairwise(dict.fromkeys([0, *ends, len(network)]))
    return tuple(network[begin:end] for begin, end in bounds)


def _smallest(network: tuple[Layer, ...]) -> int:
    """The side of the smallest image that leaves the last layer a pixel."""

    def leaves_one(side: int) -> bool:
        return all((side := layer.output_side(side)) >= 1 for layer in network)

    return next(side for side in itertools.count(1) if leaves_one(side))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context without autocast; it does nothing on the meta device, where torch has none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _random(network: Sequence[Layer]) -> dict[str, Tensor]:
    """Random weights, drawn as torchvision draws those of a VGG: He et al. 2015."""
    state = {}
    for key, shape in (entry for layer in network for entry in layer.tensors()):
        # The CPU, because torch's default device may be the meta device.
        value = torch.empty(shape, dtype=torch.float32, device="cpu")
        if len(shape) == 4:
            init.kaiming_normal_(value, mode="fan_out")
        else:
            init.constant_(value, 1.0 if key.endswith(("weight", "running_var")) else 0.0)
        state[key] = value
    return state
