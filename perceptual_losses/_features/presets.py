"""Layers, weights and distances of feature losses, as papers define them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._validation import finite_number


class Preset(NamedTuple):
    """The layers of a paper, with their weights.

    Attributes:
        backbone: the paper's network.
        distance: the paper's distance between features, ``"l1"`` or ``"l2"``.
        layers: the weights of the layers by name.
    """

    backbone: str
    distance: str
    layers: dict[str, float]


VGG_PRESETS = {
    # Johnson, Alahi and Fei-Fei 2016, for content and for super-resolution.
    "johnson": Preset("vgg16", "l2", {"relu2_2": 1.0}),
    # Hou, Shen, Sun and Qiu 2017, whose squared distance has a half before it.
    "dfc-123": Preset("vgg19", "l2", {"relu1_1": 0.5, "relu2_1": 0.5, "relu3_1": 0.5}),
    "dfc-345": Preset("vgg19", "l2", {"relu3_1": 0.5, "relu4_1": 0.5, "relu5_1": 0.5}),
    # Ledig et al. 2017, who divide the features by 12.75.
    "srgan": Preset("vgg19", "l2", {"relu5_4": 1 / 12.75**2}),
    # Wang et al. 2018, who take the features before the activation.
    "esrgan": Preset("vgg19", "l1", {"conv5_4": 1.0}),
}
"""The layers that `VGGLoss` knows by name."""

_JOHNSON_STYLE = dict.fromkeys(["relu1_2", "relu2_2", "relu3_3", "relu4_3"], 1.0)

STYLE_PRESETS = {
    # Johnson, Alahi and Fei-Fei 2016.
    "johnson": Preset("vgg16", "l2", _JOHNSON_STYLE),
    # Gatys, Ecker and Bethge 2016: a fifth each, and a quarter of the squared distance.
    "gatys": Preset("vgg19", "l2", {f"relu{block}_1": 0.05 for block in range(1, 6)}),
}
"""The layers that `StyleLoss` knows by name."""

LPIPS_LAYERS = {
    "vgg16": ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
    "alexnet": ("relu1", "relu2", "relu3", "relu4", "relu5"),
    "squeezenet1_1": ("relu1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9"),
}
"""The layers of each network that LPIPS's linear weights were calibrated on."""


def resolve_layers(
    layers: Any,
    presets: dict[str, Preset],
    backbone: str | None,
    distance: str | None,
    default_distance: str,
) -> Preset:
    """The layers with their weights, network and distance: a paper's by its name, or the user's."""
    if isinstance(layers, str):
        if layers not in presets:
            raise ValueError(
                f"layers={layers!r} is unknown: pass one of {tuple(presets)}, or weights by names "
                "of layers such as {'relu2_2': 1.0}"
            )
        preset = presets[layers]
        for name, value, own in (
            ("backbone", backbone, preset.backbone),
            ("distance", distance, preset.distance),
        ):
            if value not in (None, own):
                raise ValueError(
                    f"layers={layers!r} is defined with {name}={own!r}, not {value!r}: leave "
                    f"{name} out, or pass the layers {preset.layers}"
                )
        # A copy: a loss's weights may change between phases of a training.
        return preset._replace(layers=dict(preset.layers))
    if not isinstance(layers, Mapping):
        raise TypeError(
            f"layers is of type {type(layers).__name__}: pass weights by names of layers such as "
            f"{{'relu2_2': 1.0}}, or one of {tuple(presets)}"
        )
    return Preset(backbone or "vgg16", distance or default_distance, layer_weights(layers))


def layer_weights(layers: Any) -> dict[str, float]:
    """The layers' weights by name, checked."""
    if not isinstance(layers, Mapping):
        raise TypeError(
            f"layers is of type {type(layers).__name__}: pass weights by names of layers"
        )
    if not layers:
        raise ValueError("layers={}: pass weights by names of layers, at least one name")
    weights = {name: finite_number(f"layers[{name!r}]", w) for name, w in layers.items()}
    if any(weight < 0 for weight in weights.values()):
        raise ValueError(f"layers={weights}: pass weights that are not negative")
    return weights
