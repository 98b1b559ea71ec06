"""The frozen networks of the feature losses: their layers and their weights.

The weights are buffers that no state dict holds, and the layers are functions of them. So an
optimizer, a checkpoint or ``.train()`` finds nothing, and ``.to()`` moves everything.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import _validation
from .._runtime.warnings import warn
from .winograd import convolution, suits, transform_filters

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | None

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Statistics of ImageNet's colours: torchvision's weights expect input normalised by them."""


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
        name: the name in the literature: ``relu3_2`` follows the second convolution of block 3.
        layer_type: ``"conv"``, ``"norm"``, ``"relu"`` or ``"pool"``.
        position: the layer's index in torchvision's ``features``.
        shape: the weight's shape: ``(out, in, size, size)`` of a convolution, ``(channels,)`` of a
            normalisation, and empty of the others.
        size: the side of the window.
        stride: the step between windows.
        padding: the zeros on each side.
    """

    name: str
    layer_type: str
    position: int
    shape: tuple[int, ...] = ()
    size: int = 1
    stride: int = 1
    padding: int = 0

    def output_side(self, side: int) -> int:
        """The height or width of the output, for an input of that height or width."""
        return (side + 2 * self.padding - self.size) // self.stride + 1


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
}
"""Torchvision's networks of Simonyan and Zisserman 2015 and Krizhevsky 2014, without classifier."""

_PARTS = {
    "conv": ("weight", "bias"),
    "norm": ("weight", "bias", "running_mean", "running_var"),
    "relu": (),
    "pool": (),
}


class Extractor(nn.Module):
    """Features of a frozen network; `vgg_features` makes and documents it."""

    def __init__(
        self,
        layers: Sequence[str],
        *,
        backbone: str,
        weights: Weights,
        data_range: float | tuple[float, float],
        dtype: torch.dtype | None,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        _validation.check_choice("backbone", backbone, tuple(BACKBONES))
        network = BACKBONES[backbone]
        names = [layer.name for layer in network]
        if not isinstance(layers, (list, tuple)) or not layers:
            raise ValueError(f"layers={layers!r}: pass a list of at least one name, of {names}")
        for name in layers:
            if name not in names:
                raise ValueError(f"{backbone} has no layer {name!r}: pass some of {names}")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(
                f"dtype={dtype!r}: pass a floating dtype such as torch.bfloat16, or None"
            )
        self.layers, self.backbone, self.dtype = tuple(layers), backbone, dtype
        self.data_range, self.checkpointing = data_range, checkpointing
        self._matrices: dict[str, tuple[Tensor, Tensor, int]] = {}
        deepest = max(names.index(name) for name in layers)
        self._network = network[: deepest + 1]
        self._blocks, self._smallest = _blocks(self._network), _smallest(self._network)

        low, length = _validation.low_and_length(data_range)
        scale = torch.tensor([1 / (length * deviation) for deviation in DEVIATION])
        shift = torch.tensor(
            [-low / (length * s) - m / s for m, s in zip(MEAN, DEVIATION, strict=True)]
        )
        self._buffer("scale", scale.reshape(3, 1, 1))
        self._buffer("shift", shift.reshape(3, 1, 1))
        for layer in self._network:
            for part in _PARTS[layer.layer_type]:
                self._buffer(f"{layer.name}_{part}", None)
        if weights == "imagenet":
            # Fetched by the first call: constructing a loss touches neither internet nor disk.
            return
        if weights is None:
            warn(
                f"the features of {backbone} are random: distances between them are not known to "
                "be perceptual. Pass weights='imagenet', a path or a state dict."
            )
            self._adopt(_random(network))
        else:
            self._adopt(_read(weights, backbone))

    def _buffer(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    @property
    def loaded(self) -> bool:
        """Whether the network has its weights."""
        return self._buffers[f"{self._network[0].name}_weight"] is not None

    def load(self) -> None:
        """Fetches ImageNet's weights, unless the network has its weights."""
        if not self.loaded:
            self._adopt(_imagenet(self.backbone))

    # A first call in inference mode may load the weights, and a later one train.
    @torch.inference_mode(False)
    def _adopt(self, state: Mapping[str, Tensor]) -> None:
        like = self.get_buffer("scale")
        for layer in self._network:
            for part in _PARTS[layer.layer_type]:
                value = state[f"{layer.position}.{part}"].detach()
                value = value.to(like.device, self.dtype or like.dtype, copy=True)
                if value.dim() == 4:
                    value = value.contiguous(memory_format=torch.channels_last)
                self._buffers[f"{layer.name}_{part}"] = value

    def _apply(self, fn: Any, recurse: bool = True) -> Extractor:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.dtype is not None:
            # A dtype that was asked for outlives that of the model around it.
            for name, value in self._buffers.items():
                if value is not None:
                    dtype = torch.float32 if name in ("scale", "shift") else self.dtype
                    self._buffers[name] = value.to(dtype)
        # Matrices of replaced weights would waste memory.
        self._matrices = {
            name: entry
            for name, entry in self._matrices.items()
            if entry[0] is self.get_buffer(f"{name}_weight")
        }
        return self

    def check_images(self, name: str, image: Any) -> None:
        """Refuses everything but a batch of images that the network takes."""
        _validation.check_colour_images(name, image, self.data_range)
        if min(image.shape[2:]) < self._smallest:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}, too small for {self._network[-1].name} of "
                f"{self.backbone}: pass images of at least {self._smallest}x{self._smallest}"
            )

    def shapes(self, image: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of the features of images like ``image``, by layer."""
        found = {}
        channels, sides = 3, list(image.shape[2:])
        for layer in self._network:
            channels = layer.shape[0] if layer.shape else channels
            sides = [layer.output_side(side) for side in sides]
            found[layer.name] = (image.shape[0], channels, *sides)
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
        scale, shift = frozen(self, "scale"), frozen(self, "shift")
        weight = self.get_buffer(f"{self._network[0].name}_weight")
        with without_autocast(x.device) if self.dtype else contextlib.nullcontext():
            # One channel is expanded to three here, which costs no memory of its own.
            x = (x.to(scale.dtype) * scale + shift).to(weight.dtype)
            # These operations make it channels_last, and torch can batch them.
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
            found: dict[str, Tensor] = {}
            for block in self._blocks:
                run = functools.partial(self._run, block)
                if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
                    # Imported late: `import torch` doesn't load it.
                    from torch.utils.checkpoint import checkpoint

                    x, requested = checkpoint(run, x, use_reentrant=False)
                else:
                    x, requested = run(x)
                found.update(requested)
        return {name: found[name] for name in self.layers}

    def _run(self, block: Sequence[Layer], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The output of a block, and its features that were requested."""
        features = {}
        requested = rectified = True
        for layer, following in itertools.zip_longest(block, block[1:]):
            parts = [frozen(self, f"{layer.name}_{part}") for part in _PARTS[layer.layer_type]]
            if layer.layer_type == "conv" and suits(x, parts[0]):
                weight, bias = parts
                rectified = layer.name not in self.layers and following.layer_type == "relu"
                matrices = self._filter_matrices(layer.name)
                x = convolution(x, weight, matrices, bias, rectified)
            elif layer.layer_type == "conv":
                weight, bias = parts
                x = functional.conv2d(x, weight, bias, layer.stride, layer.padding)
                rectified = False
            elif layer.layer_type == "norm":
                weight, bias, mean, variance = parts
                x = functional.batch_norm(x, mean, variance, weight, bias)
            elif layer.layer_type == "relu":
                # In place, unless the input is a feature that was requested.
                x = x if rectified else functional.relu(x, inplace=not requested)
            else:
                x = functional.max_pool2d(x, layer.size, layer.stride)
            requested = layer.name in self.layers
            if requested:
                features[layer.name] = x
        return x, features

    def _filter_matrices(self, name: str) -> Tensor:
        """The matrices that `convolution` takes, kept for as long as the weight is the same."""
        weight = self.get_buffer(f"{name}_weight")
        source, matrices, version = self._matrices.get(name, (None, None, None))
        if matrices is None or source is not weight or version != _version(weight):
            with torch.inference_mode(False):  # A later call may save them for its backward.
                matrices = transform_filters(weight)
            self._matrices[name] = weight, matrices, _version(weight)
        return matrices

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrices": {}}

    def extra_repr(self) -> str:
        return (
            f"layers={self.layers}, backbone={self.backbone!r}, data_range={self.data_range}, "
            f"dtype={self.dtype}, loaded={self.loaded}"
        )


def frozen(module: nn.Module, name: str) -> Tensor:
    """A buffer of the module, for calculations that autograd records.

    DistributedDataParallel rewrites the buffers before each forward with the values that they have.
    Autograd would refuse a backward after a second forward, though it is right: ``.data`` hides the
    rewriting.
    """
    buffer = module.get_buffer(name)
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return buffer if traced else buffer.data


def _version(weight: Tensor) -> int:
    """The number of changes of the weight in place, or 0 where torch doesn't count them."""
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
    for layer in network:
        if layer.layer_type == "conv":
            weight = torch.empty(layer.shape)
            state[f"{layer.position}.weight"] = nn.init.kaiming_normal_(weight, mode="fan_out")
            state[f"{layer.position}.bias"] = torch.zeros(layer.shape[0])
        for part in _PARTS[layer.layer_type] if layer.layer_type == "norm" else ():
            start = torch.ones if part in ("weight", "running_var") else torch.zeros
            state[f"{layer.position}.{part}"] = start(layer.shape)
    return state


def _imagenet(backbone: str) -> dict[str, Tensor]:
    """Torchvision's weights: read in its cache, or downloaded with their hash checked."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(weights.url)
    try:
        state = weights.get_state_dict(map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, ConnectionError, TimeoutError) as error:
        raise RuntimeError(
            f"the ImageNet weights of {backbone} could not be downloaded ({error}). On a machine "
            f"with network fetch {weights.url} and put it at {file}, or pass its path as weights="
        ) from error
    except Exception as error:  # Whatever a broken file raises is the reason.
        raise RuntimeError(
            f"the ImageNet weights of {backbone} at {file} cannot be read ({_line(error)}). Delete "
            f"the file to have it downloaded again, from {weights.url}"
        ) from error
    return _fitting(state, backbone, f"the file {file}")


def _read(weights: Any, backbone: str) -> dict[str, Tensor]:
    """Weights that the user passed."""
    if isinstance(weights, nn.Module):
        return _fitting(weights.state_dict(), backbone, "the module passed as weights")
    if isinstance(weights, (str, os.PathLike)):
        return _fitting(read_file("weights", weights), backbone, f"weights={str(weights)!r}")
    if isinstance(weights, Mapping):
        return _fitting(weights, backbone, "the state dict passed as weights")
    raise TypeError(
        f"weights is of type {type(weights).__name__}: pass 'imagenet', a path, a state dict, a "
        "module, or None for random ones"
    )


def read_file(name: str, path: str | os.PathLike[str]) -> Any:
    """The content of a file that ``torch.save`` has written, if it has only tensors."""
    if not os.path.exists(path):
        known = " (or 'imagenet')" if name == "weights" else ""
        raise FileNotFoundError(
            f"{name}={str(path)!r}: there is no such file; pass its path{known}"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a broken file raises is the reason.
        raise ValueError(
            f"{name}={str(path)!r} cannot be read as tensors alone ({_line(error)}): pass a "
            "complete file that torch.save has written of a state dict"
        ) from error


def _line(error: BaseException) -> str:
    """The type and the first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _fitting(state: Any, backbone: str, what: str) -> dict[str, Tensor]:
    """The part of a state dict that belongs to the features; refuses any other network's."""
    advice = f"pass the state dict of torchvision.models.{backbone}() or of its .features"
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{what} is no state dict: {advice}")
    if any(key.startswith("features.") for key in state):
        begin = len("features.")
        found = {k[begin:]: v for k, v in state.items() if not k.startswith("classifier.")}
    else:
        found = dict(state)
    found = {key: v for key, v in found.items() if not key.endswith("num_batches_tracked")}
    expected = {
        f"{layer.position}.{part}": layer.shape
        if (layer.layer_type, part) == ("conv", "weight")
        else layer.shape[:1]
        for layer in BACKBONES[backbone]
        for part in _PARTS[layer.layer_type]
    }
    for key in sorted(expected.keys() ^ found.keys()):
        problem = "is missing" if key in expected else "is not part of it"
        raise ValueError(f"{what} does not fit {backbone}: {key!r} {problem}; {advice}")
    for key, shape in expected.items():
        value = found[key]
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{what} does not fit {backbone}: {key!r} is {given} and not {shape}; {advice}"
            )
    return found
