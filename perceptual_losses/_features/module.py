"""Features of any network that is a module, by the names of its submodules."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import _validation
from .backbone import FeatureExtractor, as_images

_LOCAL = threading.local()
"""``found`` collects the outputs of this thread's call."""


class _Recorder:
    """A hook that notes a submodule's output under its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        # Checkpointing runs the network again in the backward, outside any call that collects.
        found = getattr(_LOCAL, "found", None)
        if found is not None:
            found[self.name] = output, _version(output)


class ModuleExtractor(FeatureExtractor):
    """The outputs of submodules of a frozen copy of a network."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        data_range: float | tuple[float, float],
        mean: Sequence[float],
        deviation: Sequence[float],
        dtype: torch.dtype | None,
    ) -> None:
        _check_network(network, layers)
        super().__init__(
            layers,
            data_range,
            dtype,
            _colours("mean", mean),
            _colours("std", deviation, positive=True),
        )
        own = copy.deepcopy(network).eval().requires_grad_(False)
        if dtype is not None:
            own.to(dtype)
        for module in own.modules():
            # A rectifier in place would overwrite the output of the layer before it.
            if getattr(module, "inplace", False):
                module.inplace = False  # type: ignore[assignment]
        for name in layers:
            own.get_submodule(name).register_forward_hook(_Recorder(name))
        # A tuple hides the network from the modules around it.
        self._hidden = (own,)
        self._place = _place(own)
        self._network_dtype = dtype or self._place.dtype
        self._move()

    def _move(self) -> None:
        super()._move()
        for network in getattr(self, "_hidden", ()):
            if self.device.type != "meta":
                network.to(self.device)
                dtype = self.dtype or self._place.dtype
                # A network with several dtypes keeps them until another one is asked for.
                if dtype != self._network_dtype:
                    network.to(dtype)
                    self._network_dtype = dtype

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.check_images("x", x)
        (network,) = self._hidden
        if self.device.type == "meta":
            network = copy.deepcopy(network).to("meta")
        before = getattr(_LOCAL, "found", None)
        found: dict[str, Any] = {}
        _LOCAL.found = found
        try:
            with self._without_autocast():
                network(self._normalized(x).to(self._network_dtype))
        finally:
            _LOCAL.found = before
        for name in self.layers:
            output, version = found.get(name, (None, None))
            if not isinstance(output, Tensor):
                kind = type(output).__name__ if name in found else "nothing, for it did not run"
                raise ValueError(
                    f"the layer {name!r} gives {kind}: pass the name of a submodule that runs and "
                    "returns a tensor"
                )
            if not output.is_floating_point():
                raise ValueError(
                    f"the layer {name!r} gives values of {output.dtype}: pass a layer with real "
                    "floating-point features"
                )
            if output.dim() < 2 or len(output) != len(as_images(x)):
                raise ValueError(
                    f"the layer {name!r} gives the shape {tuple(output.shape)} for "
                    f"{len(as_images(x))} images: pass a layer with an entry for each image"
                )
            if version != _version(output):
                raise ValueError(
                    f"the network changes the output of {name!r} in place: pass the name of the "
                    "submodule after it, or of the one around it"
                )
        return {name: found[name][0] for name in self.layers}

    def extra_repr(self) -> str:
        return (
            f"layers={self.layers}, network={type(self._hidden[0]).__name__}, "
            f"data_range={self.data_range}, dtype={self.dtype}"
        )


def _version(output: Any) -> int:
    """The number of in-place changes of a tensor, or 0 where torch doesn't count them."""
    if torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.is_inference():
        return 0
    return output._version


def _place(network: nn.Module) -> Tensor:
    """An empty tensor with the device and the dtype of a network's weights."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            return torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return torch.empty(0, dtype=torch.float32)


def _check_network(network: Any, layers: Sequence[str]) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is of type {type(network).__name__}: pass a torch.nn.Module")
    named = network.named_modules(remove_duplicate=False)
    known = [name for name, _ in named if name]
    for name in layers:
        if name not in known:
            raise ValueError(
                f"{type(network).__name__} has no submodule {name!r}: pass some of {known}"
            )
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} of the network is on the meta device and has no values: load its "
                "weights before it is passed"
            )


def _colours(name: str, values: Any, positive: bool = False) -> tuple[float, ...]:
    """Three numbers, one for each colour."""
    if not isinstance(values, (tuple, list)) or len(values) != 3:
        raise ValueError(f"{name}={values!r}: pass three numbers, one for each colour")
    check: Callable[[str, Any], float] = (
        _validation.positive_number if positive else _validation.finite_number
    )
    return tuple(check(name, value) for value in values)
