"""Drawn calls of the losses on features."""

import functools
import math

import torch
from fuzz_judge import CONTENTS, DTYPES, LAYOUTS, spoil
from hypothesis import strategies as st
from torch.nn import functional

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from perceptual_losses._features.backbone import BACKBONES
from perceptual_losses.features import LPIPS_LAYERS, STYLE_PRESETS, VGG_PRESETS

TAKERS = {
    "LPIPSLoss": LPIPSLoss,
    "StyleLoss": StyleLoss,
    "VGGLoss": VGGLoss,
    "vgg_features": vgg_features,
}
PRESETS = {"VGGLoss": VGG_PRESETS, "StyleLoss": STYLE_PRESETS}
# How the weights of a network are drawn: the gain of its first layer, and the bias of every layer,
# least and most.
NETWORKS = {
    "usual": (1.0, -0.1, 0.1),
    # Most features are dead, and with some images all of some places.
    "dark": (1.0, -2.5, -1.0),
    # Features so small that an offset of 1e-10 shows.
    "faint": (1e-8, 0.0, 0.0),
}


@functools.cache
def network(backbone, kind):
    """Torchvision's state dict of a network's features."""
    gain, low, high = NETWORKS[kind]
    generator = torch.Generator().manual_seed(len(backbone))

    def uniform(count, low, high):
        return low + (high - low) * torch.rand(count, generator=generator)

    state = {}
    for layer in BACKBONES[backbone]:
        if layer.layer_type == "conv":
            fan_in = math.prod(layer.shape[1:])
            weight = torch.randn(layer.shape, generator=generator) * (2 / fan_in) ** 0.5
            state[f"{layer.position}.weight"] = weight * (gain if layer.position == 0 else 1)
            state[f"{layer.position}.bias"] = uniform(layer.shape[0], low, high)
        if layer.layer_type == "norm":
            for part, bounds in (
                ("weight", (0.5, 1.5)),
                ("bias", (-0.2, 0.2)),
                ("running_mean", (-0.2, 0.2)),
                ("running_var", (0.5, 2.0)),
            ):
                state[f"{layer.position}.{part}"] = uniform(layer.shape[0], *bounds)
    return state


@functools.cache
def linear(backbone):
    """LPIPS's linear weights, some of them zero as in its files."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        f"relu{layer.name[4:]}": layer.shape[0] for layer in BACKBONES[backbone] if layer.shape
    }
    return {
        f"lin{index}.model.1.weight": functional.relu(
            torch.rand(1, shapes[name], 1, 1, generator=generator) - 0.2
        )
        for index, name in enumerate(LPIPS_LAYERS[backbone])
    }


def weighed(case):
    """The weights of a case's layers by name, its network, and the power of its distance."""
    layers, backbone = case["layers"], case["backbone"]
    power = {"l1": 1, "l2": 2, None: 1}[case.get("options", {}).get("distance")]
    if isinstance(layers, str):
        preset = PRESETS[case["name"]][layers]
        return preset.layers, preset.backbone, {"l1": 1, "l2": 2}[preset.distance]
    if case["name"] == "LPIPSLoss":
        layers = dict.fromkeys(LPIPS_LAYERS[backbone], 1.0)
    return layers, backbone or "vgg16", power


def plan_of(layers, backbone):
    plan = BACKBONES[backbone]
    return plan[: 1 + max(place for place, layer in enumerate(plan) if layer.name in layers)]


def smallest_of(case):
    """The side that leaves the last layer of a case a pixel."""
    side = 1
    for layer in reversed(plan_of(*weighed(case)[:2])):
        side = max(1, (side - 1) * layer.stride + layer.size - 2 * layer.padding)
    return side


# Calls that a network in any precision refuses in the same words.
WRONG = {
    "VGGLoss": [
        {"layers": "dfc"},
        {"layers": {}},
        {"layers": {"relu9_1": 1.0}},
        {"layers": {"relu1_1": -1.0}},
        {"layers": {"relu1_1": float("nan")}},
        {"layers": {"relu1_1": True}},
        {"layers": ["relu1_1"]},
        {"layers": "johnson", "backbone": "vgg19"},
        {"layers": "johnson", "distance": "l1"},
        {"distance": "l3"},
    ],
    "StyleLoss": [{"layers": "dfc-123"}, {"layers": {"norm1_1": 1.0}, "backbone": "vgg16"}],
    "LPIPSLoss": [{"backbone": "vgg19"}, {"linear": {}}, {"linear": 3}],
    "vgg_features": [{"layers": []}, {"layers": "relu1_1"}, {"layers": ["relu1_1", "pool9"]}],
}
WRONG_ANYWHERE = [
    {"data_range": 0},
    {"data_range": [1.0, -1.0]},
    {"data_range": [0.0, 1.0, 2.0]},
    {"data_range": float("nan")},
    {"data_range": "1"},
    {"dtype": "uint8"},
    {"backbone": "resnet18"},
    {"weights": {}},
    {"weights": 3},
]
WRONG_IMAGES = {
    "channels": lambda image, least: torch.cat([image, image], 1)[:, :2],
    "unbatched": lambda image, least: image[0],
    "empty": lambda image, least: image[:0],
    "complex": lambda image, least: image + 0j,
    "narrow": lambda image, least: image[..., : least - 1],
    "list": lambda image, least: image.tolist(),
}


@st.composite
def cases(draw, deep=True, most=40):
    """A call as JSON would keep it; the last layers are for those who can wait."""
    name = draw(st.sampled_from(sorted(TAKERS)))
    rare = deep and draw(st.integers(0, 9)) == 0
    backbone = draw(st.sampled_from(["vgg16", "vgg19", "alexnet"] * 2 + ["vgg16_bn", "vgg19_bn"]))
    if name == "LPIPSLoss":
        backbone = "vgg16" if rare else "alexnet"
        layers = None
    elif name in PRESETS and draw(st.integers(0, 5)) == 0:
        shallow = {"VGGLoss": ["johnson", "dfc-123"], "StyleLoss": ["johnson"]}[name]
        layers, backbone = draw(st.sampled_from(list(PRESETS[name]) if rare else shallow)), None
    else:
        known = [layer.name for layer in BACKBONES[backbone]]
        last = len(known) if rare else known.index("relu3" if backbone == "alexnet" else "conv3_2")
        # Mostly behind a convolution of the kernels, which is not the first.
        deepest = draw(st.sampled_from([known[0], *known[2 : last + 1]]))
        others = draw(st.lists(st.sampled_from(known[:last]), max_size=2))
        layers = list(dict.fromkeys([deepest, *others]))
        if name != "vgg_features":
            weight = st.sampled_from([1.0, 0.5, 3.0, 1e-4, 0.0])
            layers = {layer: draw(weight) for layer in layers}
    case = {"name": name, "backbone": backbone, "layers": layers}
    least = smallest_of(case)
    # AlexNet makes a pixel of eight before its convolutions of 3x3.
    most = 2 * most if backbone == "alexnet" else least + 8 if rare else most
    sides = [draw(st.integers(least, most)) for _ in "hw"]
    low = draw(st.sampled_from([0.0, 0.0, -1.0, 3.5, -128.0]))
    length = draw(st.sampled_from([1.0, 255.0, 2.0, 1e-3, 65535.0]))
    dtypes = [draw(st.sampled_from(["float32", *DTYPES])) for _ in "xy"]
    if "uint8" in dtypes:
        low, length = 0.0, 255.0
    options = {"data_range": length if low == 0 else [low, low + length]}
    if name != "vgg_features":
        options["reduction"] = draw(st.sampled_from(["none", "mean"]))
    if name == "VGGLoss" and not isinstance(layers, str):
        options["distance"] = draw(st.sampled_from(["l1", "l2", None]))
    if draw(st.integers(0, 3)) == 0:
        options["checkpointing"] = True
    trunks = ["float32", None, "bfloat16"] * 3 + ["float16", "float64", "doubled"]
    case |= {
        "network": draw(st.sampled_from(["usual", *NETWORKS])),
        "trunk": draw(st.sampled_from(trunks)),
        # Kernels also where there is nothing to gain.
        "everywhere": draw(st.sampled_from([True, True, False])),
        "shape": [draw(st.integers(1, 3)), draw(st.sampled_from([3, 3, 1])), *sides],
        "content": draw(st.sampled_from(sorted(CONTENTS))),
        "seed": draw(st.integers(0, 3)),
        "dtypes": dtypes,
        "layouts": [draw(st.sampled_from(list(LAYOUTS))) for _ in "xy"],
        "wants": draw(st.sampled_from(["xy", "x", "y", ""])),
        "options": options,
    }
    if name != "vgg_features":
        case["kept"] = draw(st.sampled_from([False, False, True]))
    if name == "StyleLoss" and draw(st.booleans()):
        case["sides_of_y"] = [draw(st.integers(least, side)) for side in sides]
    if draw(st.integers(0, 3)) == 0:
        value = st.sampled_from(["nan", "inf", "-inf"])
        place = st.tuples(st.sampled_from("xy"), st.floats(0, 0.999), value)
        case["spoiled"] = draw(st.lists(place.map(list), min_size=1, max_size=2))
    if draw(st.integers(0, 31)) == 0:
        options = [*WRONG[name], *WRONG_ANYWHERE, *[{"image": wrong} for wrong in WRONG_IMAGES]]
        case["wrong"] = draw(st.sampled_from(options))
    if draw(st.integers(0, 3)) == 0:
        case["threads"] = draw(st.integers(1, 3))
    return case


def images(case):
    """The two images of a case."""
    generator = torch.Generator().manual_seed(case["seed"])
    shape = case["shape"]
    a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in "xy")
    pair = list(CONTENTS[case["content"]](a, b))
    height, width = case.get("sides_of_y", shape[2:])
    pair[1] = pair[1][..., :height, :width]
    low, length = low_and_length(case)
    out = []
    for image, dtype in zip(pair, case["dtypes"], strict=True):
        image = low + length * image
        image = image.clamp(0, 255) if dtype == "uint8" else image
        out.append(image.to(getattr(torch, dtype)))
    out = spoil(out, case.get("spoiled", []))
    return [LAYOUTS[layout](image) for image, layout in zip(out, case["layouts"], strict=True)]


def low_and_length(case):
    given = case["options"]["data_range"]
    return (given[0], given[1] - given[0]) if isinstance(given, list) else (0.0, given)


def trunk_of(case):
    return getattr(torch, {None: "float32", "doubled": "float64"}.get(case["trunk"], case["trunk"]))
