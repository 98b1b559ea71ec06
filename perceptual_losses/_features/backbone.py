"""The frozen networks that the feature losses look through: their layers, their weights.

The weights are buffers that no state dict holds, and the layers are functions of them: nothing for
an optimizer, a checkpoint or ``.train()`` to find, and everything that ``.to()`` moves.
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
from .winograd import at_points, convolution, suits

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | None

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, by which torchvision's weights expect their input normalised."""


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
        name: in the field's notation: ``relu3_2`` follows the second convolution of block 3.
        kind: ``"conv"``, ``"norm"``, ``"relu"`` or ``"pool"``.
        place: in torchvision's ``features``.
        shape: of the weight of a convolution, ``(out, in, size, size)``; the number of channels of
            a normalisation.
        size: of the window.
        stride: of the window.
        padding: of the window.
    """

    name: str
    kind: str
    place: int
    shape: tuple[int, ...] = ()
    size: int = 1
    stride: int = 1
    padding: int = 0

    def side(self, side: int) -> int:
        """Of the output, for an input of such height or width."""
        return (side + 2 * self.padding - self.size) // self.stride + 1


def _vgg(convolutions: Sequence[int], norm: bool) -> tuple[Layer, ...]:
    layers: list[Layer] = []
    channels = 3
    for block, (count, width) in enumerate(
        zip(convolutions, (64, 128, 256, 512, 512), strict=True), 1
    ):
        for number in range(1, count + 1):
            place = f"{block}_{number}"
            shape = (width, channels, 3, 3)
            layers.append(Layer(f"conv{place}", "conv", len(layers), shape, 3, 1, 1))
            if norm:
                layers.append(Layer(f"norm{place}", "norm", len(layers), (width,)))
            layers.append(Layer(f"relu{place}", "relu", len(layers)))
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
"""Networks of torchvision, Simonyan and Zisserman 2015 and Krizhevsky 2014, without classifier."""

_PARTS = {
    "conv": ("weight", "bias"),
    "norm": ("weight", "bias", "running_mean", "running_var"),
    "relu": (),
    "pool": (),
}


class Extractor(nn.Module):
    """Features of a frozen network; made by `vgg_features`, which documents it."""

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
        plan = BACKBONES[backbone]
        names = [layer.name for layer in plan]
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
        self._plan = plan[: deepest + 1]
        self._blocks, self._smallest = _blocks(self._plan), _smallest(self._plan)

        low, length = _validation.low_and_length(data_range)
        scale = torch.tensor([1 / (length * deviation) for deviation in DEVIATION])
        shift = torch.tensor(
            [-low / (length * s) - m / s for m, s in zip(MEAN, DEVIATION, strict=True)]
        )
        self._buffer("scale", scale.reshape(3, 1, 1))
        self._buffer("shift", shift.reshape(3, 1, 1))
        for layer in self._plan:
            for part in _PARTS[layer.kind]:
                self._buffer(f"{layer.name}_{part}", None)
        if weights == "imagenet":
            # Fetched when first needed: constructing a loss touches neither network nor disk.
            return
        if weights is None:
            warn(
                f"the features of {backbone} are random: distances between them are not known to "
                "be perceptual. Pass weights='imagenet', a path or a state dict."
            )
            self._adopt(_random(plan))
        else:
            self._adopt(_read(weights, backbone))

    def _buffer(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

    @property
    def loaded(self) -> bool:
        """Whether the weights are there."""
        return self._buffers[f"{self._plan[0].name}_weight"] is not None

    def load(self) -> None:
        """Fetches ImageNet's weights, unless it has been done."""
        if not self.loaded:
            self._adopt(_imagenet(self.backbone))

    @torch.inference_mode(False)  # A first call in that mode may fetch them, a later one train.
    def _adopt(self, state: Mapping[str, Tensor]) -> None:
        like = self.get_buffer("scale")
        for layer in self._plan:
            for part in _PARTS[layer.kind]:
                value = state[f"{layer.place}.{part}"].detach()
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
                    kind = torch.float32 if name in ("scale", "shift") else self.dtype
                    self._buffers[name] = value.to(kind)
        # Those of weights that are gone take their memory for nothing.
        self._matrices = {
            name: kept
            for name, kept in self._matrices.items()
            if kept[0] is self.get_buffer(f"{name}_weight")
        }
        return self

    def check(self, name: str, image: Any) -> None:
        """Refuses what is no batch of images for the network."""
        _validation.check_colour_images(name, image, self.data_range)
        if min(image.shape[2:]) < self._smallest:
            raise ValueError(
                f"{name} has shape {tuple(image.shape)}, too small for {self._plan[-1].name} of "
                f"{self.backbone}: pass images of at least {self._smallest}x{self._smallest}"
            )

    def shapes(self, image: Tensor) -> dict[str, tuple[int, ...]]:
        """Of the features of such images."""
        found = {}
        channels, sides = 3, list(image.shape[2:])
        for layer in self._plan:
            channels = layer.shape[0] if layer.shape else channels
            sides = [layer.side(side) for side in sides]
            found[layer.name] = (image.shape[0], channels, *sides)
        return {name: found[name] for name in self.layers}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.check("x", x)
        if not self.loaded:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "weights='imagenet' are fetched by the first call, which torch.compile would "
                    "trace: call .load() before compiling"
                )
            self.load()
        scale, shift = frozen(self, "scale"), frozen(self, "shift")
        weight = self.get_buffer(f"{self._plan[0].name}_weight")
        with without_autocast(x.device) if self.dtype else contextlib.nullcontext():
            # One channel is expanded to three here, which costs no memory of its own.
            x = (x.to(scale.dtype) * scale + shift).to(weight.dtype)
            # In channels_last, by operations that torch can batch.
            x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
            found: dict[str, Tensor] = {}
            for block in self._blocks:
                run = functools.partial(self._run, block)
                if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
                    # Here, because it brings what `import torch` alone does not.
                    from torch.utils.checkpoint import checkpoint

                    x, kept = checkpoint(run, x, use_reentrant=False)
                else:
                    x, kept = run(x)
                found.update(kept)
        return {name: found[name] for name in self.layers}

    def _run(self, block: Sequence[Layer], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        kept = {}
        asked = rectified = True
        for layer, following in itertools.zip_longest(block, block[1:]):
            parts = [frozen(self, f"{layer.name}_{part}") for part in _PARTS[layer.kind]]
            if layer.kind == "conv" and suits(x, parts[0]):
                weight, bias = parts
                rectified = layer.name not in self.layers and following.kind == "relu"
                matrices = self._at_points(layer.name)
                x = convolution(x, weight, matrices, bias, rectified)
            elif layer.kind == "conv":
                weight, bias = parts
                x = functional.conv2d(x, weight, bias, layer.stride, layer.padding)
                rectified = False
            elif layer.kind == "norm":
                weight, bias, mean, variance = parts
                x = functional.batch_norm(x, mean, variance, weight, bias)
            elif layer.kind == "relu":
                # In place where nobody asked for what it overwrites.
                x = x if rectified else functional.relu(x, inplace=not asked)
            else:
                x = functional.max_pool2d(x, layer.size, layer.stride)
            asked = layer.name in self.layers
            if asked:
                kept[layer.name] = x
        return x, kept

    def _at_points(self, name: str) -> Tensor:
        """What `convolution` multiplies with, kept for as long as the weight is the same."""
        weight = self.get_buffer(f"{name}_weight")
        of, matrices, version = self._matrices.get(name, (None, None, None))
        if matrices is None or of is not weight or version != _version(weight):
            with torch.inference_mode(False):  # A later call may save them for its backward.
                matrices = at_points(weight)
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
    """A buffer, for calculations that autograd records.

    DistributedDataParallel writes the buffers anew before each forward, with what they hold. A
    backward after two of them is right all the same, and refused only for a buffer itself.
    """
    buffer = module.get_buffer(name)
    traced = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return buffer if traced else buffer.data


def _version(weight: Tensor) -> int:
    """How often it has been changed in place, where torch counts that."""
    return 0 if weight.is_inference() else weight._version


def _blocks(plan: tuple[Layer, ...]) -> tuple[tuple[Layer, ...], ...]:
    """The layers in runs that end with a pooling."""
    ends = [place + 1 for place, layer in enumerate(plan) if layer.kind == "pool"]
    bounds = itertools.pairwise(dict.fromkeys([0, *ends, len(plan)]))
    return tuple(plan[begin:end] for begin, end in bounds)


def _smallest(plan: tuple[Layer, ...]) -> int:
    """The side of the smallest image that leaves the last layer a pixel."""

    def leaves_one(side: int) -> bool:
        return all((side := layer.side(side)) >= 1 for layer in plan)

    return next(side for side in itertools.count(1) if leaves_one(side))


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """In the precision that is written; on meta, where torch has no autocast, as it is."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _random(plan: Sequence[Layer]) -> dict[str, Tensor]:
    """As torchvision's VGG begins its training: He et al. 2015."""
    state = {}
    for layer in plan:
        if layer.kind == "conv":
            weight = torch.empty(layer.shape)
            state[f"{layer.place}.weight"] = nn.init.kaiming_normal_(weight, mode="fan_out")
            state[f"{layer.place}.bias"] = torch.zeros(layer.shape[0])
        for part in _PARTS[layer.kind] if layer.kind == "norm" else ():
            start = torch.ones if part in ("weight", "running_var") else torch.zeros
            state[f"{layer.place}.{part}"] = start(layer.shape)
    return state


def _imagenet(backbone: str) -> dict[str, Tensor]:
    """Torchvision's weights: from its cache, or from the network with their hash checked."""
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
    """Weights that the user has."""
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
    """What ``torch.save`` has written, if it is tensors alone."""
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
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _fitting(state: Any, backbone: str, what: str) -> dict[str, Tensor]:
    """The features' part of a state dict, by places; refuses any other network's."""
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
        f"{layer.place}.{part}": layer.shape
        if (layer.kind, part) == ("conv", "weight")
        else layer.shape[:1]
        for layer in BACKBONES[backbone]
        for part in _PARTS[layer.kind]
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
