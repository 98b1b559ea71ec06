"""Drawn calls of the losses on features on CPUs, judged by their definition in float64.

A rectifier and a maximum choose, by the sign or the order of what may be apart by a rounding, and a
gradient differs as much as the choices do. So features are judged by those in float64, and the
value and the gradients by what follows in float64 from the features that the path itself has seen.
"""

import contextlib
import functools
import math
import warnings
from unittest import mock

import torch
from fuzz_judge import (
    CONTENTS,
    DTYPES,
    LAYOUTS,
    LOST,
    TIMES,
    Violation,
    apart,
    require,
    shaped,
    sizes,
    spoil,
)
from hypothesis import strategies as st
from torch.nn import functional

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from perceptual_losses._features import winograd as convolution
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
    # Of the size that an offset of 1e-10 shows in.
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


# What is refused, and how: by a network in any precision in the same words.
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


def made(case, seen=None):
    """The loss of a case, or what gives the features of such layers."""
    _, backbone, _ = weighed(case)
    options = {"weights": network(backbone, case["network"])}
    if case["trunk"] not in (None, "doubled"):
        options["dtype"] = getattr(torch, case["trunk"])
    if seen is not None:
        data_range = case["options"]["data_range"]
        module = vgg_features(seen, backbone=backbone, data_range=data_range, **options)
        return module.double() if case["trunk"] == "doubled" else module
    if case["backbone"] is not None:
        options["backbone"] = case["backbone"]
    if case["name"] == "LPIPSLoss":
        options["linear"] = linear(backbone)
    else:
        options["layers"] = case["layers"]
    options |= case["options"] | case.get("wrong", {})
    options.pop("image", None)
    module = TAKERS[case["name"]](**options)
    return module.double() if case["trunk"] == "doubled" else module


def wanted(case, x, y):
    """The images that a gradient is asked for, and which can have one."""
    taken = "x" if case["name"] == "vgg_features" else "xy"
    return [
        image
        for name, image in (("x", x), ("y", y))
        if name in taken and name in case["wants"] and image.is_floating_point()
    ]


def differentiated(outputs, wants):
    """The outputs, and the gradients of a sum of them with signs and sizes of its own."""
    if not wants:
        return [out.detach() for out in outputs], []
    generator = torch.Generator().manual_seed(5)
    factors = []
    for out in outputs:
        # Numbers of every dtype.
        drawn = 0.5 + torch.rand(out.shape, generator=generator).bfloat16().to(out.dtype)
        factors.append(torch.where(drawn > 0.8, drawn, -drawn))
    gradients = torch.autograd.grad(outputs, wants, factors)
    return [out.detach() for out in outputs], list(gradients)


def call(case, x, y):
    """What the package gives: its outputs, and the gradients."""
    module = made(case)
    x, y = x.detach(), y.detach()
    wants = wanted(case, x, y)
    for image in wants:
        image.requires_grad_()
    if case["name"] == "vgg_features":
        return differentiated(list(module(x).values()), wants)
    return differentiated([module(x, module.features(y) if case.get("kept") else y)], wants)


def looked_at(case, x, y):
    """The features that the call has, by layer and image."""
    layers, backbone, _ = weighed(case)
    plan = plan_of(layers, backbone)
    names = [
        layer.name for layer in plan if layer.layer_type in ("relu", "pool") or layer.name in layers
    ]
    extract = made(case, names)
    wants = wanted(case, x, y)
    found = []
    for image in (x, y):
        # As the call does, which may take other kernels of torch for a backward.
        seen = image.detach().requires_grad_(any(image is want for want in wants))
        found.append({name: value.detach() for name, value in extract(seen).items()})
    return found


def features(case, image, exact, own=None):
    """Of all layers, by the definition.

    Args:
        case: names the network and its layers.
        image: the images.
        exact: whether to compute in float64, or else in the dtype of the network.
        own: the features by layer of some other run: these and its choices take the place of those
            here, and the derivatives are at that point.
    """
    layers, backbone, _ = weighed(case)
    state = network(backbone, case["network"])
    low, length = low_and_length(case)
    double = exact or case["trunk"] == "doubled"
    colour, deviation = (
        torch.tensor(values, dtype=torch.float64).reshape(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    scale, shift = 1 / (length * deviation), -(low / length + colour) / deviation
    if not exact:
        scale, shift = scale.float(), shift.float()
    # The weights are numbers of the network's dtype.
    dtype, given = torch.float64 if exact else trunk_of(case), trunk_of(case)
    values = (image.to(torch.float64 if double else torch.float32) * scale + shift).to(dtype)
    found, before = {}, None
    for layer in plan_of(layers, backbone):
        parts = {
            part: state[f"{layer.position}.{part}"].to(given).to(dtype)
            for part in ("weight", "bias", "running_mean", "running_var")
            if f"{layer.position}.{part}" in state
        }
        if layer.layer_type == "conv":
            values = functional.conv2d(
                values, parts["weight"], parts["bias"], layer.stride, layer.padding
            )
        elif layer.layer_type == "norm":
            # Written out: torch's gradient is wrong for some strides that one image can have.
            mean, variance, weight, bias = (
                parts[part].reshape(-1, 1, 1)
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            values = (values - mean) * (weight / (variance + 1e-5).sqrt()) + bias
        elif layer.layer_type == "relu":
            alive = values > 0 if own is None else own[layer.name] > 0
            values = torch.where(alive | values.isnan(), values, 0.0)
        else:
            chooser = values if own is None else own[before]
            _, chosen = functional.max_pool2d(
                chooser.detach(), layer.size, layer.stride, return_indices=True
            )
            values = values.flatten(2).gather(2, chosen.flatten(2)).view_as(chosen)
        if own is not None and layer.name in own:
            values = own[layer.name].to(dtype) + (values - values.detach())
        found[layer.name], before = values, layer.name
    return found


def unit(feature):
    """Of length 1 at each place; zero, as is its derivative, where there is nothing."""
    squared = feature.square().sum(1, keepdim=True)
    squared = torch.where(squared.isinf(), math.nan, squared)
    dark = squared == 0
    return torch.where(dark, 0.0, feature / (torch.where(dark, 1.0, squared).sqrt() + 1e-10))


def gram(feature):
    return torch.einsum("nchw,ndhw->ncd", feature, feature) / feature[0].numel()


def distance(case, a, b):
    """Of the features of two images, as the docstrings define it."""
    layers, backbone, power = weighed(case)
    total = 0.0
    for index, (name, weight) in enumerate(layers.items()):
        one, other = (f[name].to(torch.promote_types(f[name].dtype, torch.float32)) for f in (a, b))
        if case["name"] == "VGGLoss":
            term = (one - other).abs().pow(power).mean((1, 2, 3))
        elif case["name"] == "StyleLoss":
            term = (gram(one) - gram(other)).square().sum((1, 2))
        else:
            lin = linear(backbone)[f"lin{index}.model.1.weight"].to(one.dtype)
            term = (lin * (unit(one) - unit(other)).square()).sum(1).mean((1, 2))
        total = total + weight * term
    return total.mean() if case["options"]["reduction"] == "mean" else total


def defined(case, x, y, exact, own=(None, None)):
    """Outputs, gradients and features of the definition: arguments are those of `features`."""
    x, y = x.detach(), y.detach()
    wants = wanted(case, x, y)
    for image in wants:
        image.requires_grad_()
    a = features(case, x, exact, own[0])
    if case["name"] == "vgg_features":
        b, outputs = {}, [a[name] for name in case["layers"]]
    else:
        b = features(case, y, exact, own[1])
        outputs = [distance(case, a, b)]
    outputs, gradients = differentiated(outputs, wants)
    return outputs, gradients, [{k: v.detach() for k, v in seen.items()} for seen in (a, b)]


MIRRORS = [], [-1, -2], [-1], [-2]


def noise(case, x, y, mirrors):
    """The definition's own error in the dtype of the network: of features, outputs and gradients.

    The largest of several: mirrored images are as hard, and what cancels by luck in one does not in
    all.
    """
    found = {}
    for flipped in mirrors:
        near = [image.flip(flipped) for image in (x, y)]
        *rough, own = defined(case, *near, False)
        *exact, _ = defined(case, *near, True, own)
        errors = {}
        for which, image, seen in zip("xy", near, own, strict=True):
            expected = features(case, image, True) if seen else {}
            errors |= {(which, name): apart(seen[name], expected[name]) for name in seen}
        for what, got, expected in zip(("output", "gradient"), rough, exact, strict=True):
            for place, pair in enumerate(zip(got, expected, strict=True)):
                errors[what, place] = apart(*pair)
        for key, error in errors.items():
            found[key] = torch.maximum(found.get(key, torch.tensor(0.0)), sizes(error))
    return found


# Of the features: what `vgg_features` documents of a convolution in float32, for images of a pixel,
# where one of nine taps meets it and fewer products are rounded like all of them; some roundings in
# float64; in half precision that of what is kept. Those of several convolutions are independent.
ROUNDING = {
    torch.float32: 3 * 1e-6,
    torch.float64: 1e-14,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}


def budget(rounding, error, exact, dtype, convolved):
    """What `sizes` of the errors may be, and for which images (or the batch) that can be said.

    So many times the definition's own error in the network's dtype, what fewer products cost of
    what a convolution gave, of which a ReLU may leave little, and one rounding of the result.
    """
    size = sizes(exact.abs().nan_to_num(0, 0, 0))
    whole = torch.maximum(size, sizes(convolved.abs().nan_to_num(0, 0, 0)))
    known = (error <= LOST * size[1]).all(0) | (size[1] == 0)
    kept = torch.finfo(dtype)
    allowed = TIMES * error + rounding * whole + kept.eps * size
    return allowed.nan_to_num(math.inf, math.inf) + kept.smallest_normal * kept.eps, known


def check(case, backend="features"):
    """Raises unless the package does what it promises in this case.

    Returns:
        How it went: ``"refused"``, ``"judged"``, or ``"unjudged"`` where the network's dtype can
        say nothing of some image.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.get("threads", threads))
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if case["everywhere"]:
            stack.enter_context(mock.patch.object(convolution, "LEAST_VALUES", 1))
            stack.enter_context(mock.patch.dict(convolution.LEAST_CHANNELS, {torch.bfloat16: 64}))
        return _refuse(case, backend) if "wrong" in case else _check(case, backend)


def _refuse(case, backend):
    """A wrong call raises, and in float64 the same."""
    errors = []
    for trunk in (case["trunk"], "doubled"):
        wrong = WRONG_IMAGES.get(case["wrong"].get("image"), lambda image, least: image)
        x, y = (wrong(image, smallest_of(case)) for image in images(case))
        try:
            module = made({**case, "trunk": trunk})
            module(x) if case["name"] == "vgg_features" else module(x, y)
        except (TypeError, ValueError) as error:
            errors.append((type(error), str(error)))
    require(len(errors) == 2, case, backend, f"is not refused: {errors}")
    require(errors[0] == errors[1], case, backend, f"raises {errors[0]}, in float64 {errors[1]}")
    require("pass" in errors[0][1], case, backend, f"says not what to pass: {errors[0]}")
    return "refused"


def _check(case, backend):
    x, y = images(case)
    kept = x.clone(), y.clone()
    outputs, gradients = call(case, x, y)
    own = looked_at(case, x, y)
    if case["name"] == "vgg_features":
        own[1] = {}
    for image, copy in zip((x, y), kept, strict=True):
        unchanged = torch.equal(image.nan_to_num(1.25), copy.nan_to_num(1.25))
        require(unchanged, case, backend, "changes an image")

    trunk = trunk_of(case)
    kind = trunk if case["name"] == "vgg_features" else torch.promote_types(trunk, torch.float32)
    *exact, _ = defined(case, x, y, True, own)
    broken = [~image.isfinite().flatten(1).all(1) for image in (x, y)]
    either = broken[0] if case["name"] == "vgg_features" else broken[0] | broken[1]
    if either.any():
        # What stays finite is not what has seen it.
        clean, _, _ = defined(case, x, y, True)
        for got, expected in zip(outputs, clean, strict=True):
            hidden = (got.isfinite() & ~expected.isfinite()).any()
            require(not hidden, case, backend, f"hides what is not finite in its images: {got}")

    if case["name"] != "vgg_features":
        # Nor is there a gradient where the network's dtype has no number for the distance.
        either = either | ~exact[0][0].isfinite()
    lost = either
    for values in (*own[0].values(), *own[1].values()):
        # Nor where it has none for a feature.
        lost = lost | ~values.isfinite().flatten(1).all(1)
    depth = sum(layer.layer_type == "conv" for layer in plan_of(*weighed(case)[:2]))
    less = math.sqrt(depth) * ROUNDING.get(trunk, 0.0)
    results = []
    for which, image, seen, spoiled in zip("xy", (x, y), own, broken, strict=True):
        expected = features(case, image, True) if seen else {}
        for name, values in expected.items():
            if name[:4] not in ("relu", "pool"):
                convolved = values
            if name in seen:
                what = which, name
                results.append((what, seen[name], values, trunk, less, spoiled, convolved))
    rest = less
    if case["name"] != "vgg_features" and kind == torch.float32:
        # A length, a quotient, a square and a sum.
        rest = 4 * torch.finfo(kind).eps
    for place, (value, expected) in enumerate(zip(outputs, exact[0], strict=True)):
        results.append((("output", place), value, expected, kind, rest, either, expected))
    for place, (value, expected) in enumerate(zip(gradients, exact[1], strict=True)):
        dtype = wanted(case, x, y)[place].dtype
        results.append((("gradient", place), value, expected, dtype, less, lost, expected))
    try:
        return _judged(case, backend, results, noise(case, x, y, MIRRORS[:2]))
    except Violation:
        # One number can be right by luck in two.
        return _judged(case, backend, results, noise(case, x, y, MIRRORS))


def _judged(case, backend, results, errors):
    went = "judged"
    for what, result, expected, dtype, rounding, spoiled, convolved in results:
        text = " ".join(map(str, what))
        require(result.dtype == dtype, case, backend, f"{text} in {result.dtype}")
        require(result.shape == expected.shape, case, backend, f"{text} of {tuple(result.shape)}")
        if expected.dim():
            # Not a number near what is none, in its own image alone.
            expected = torch.where(shaped(spoiled, expected), math.nan, expected)
        # Beyond what the dtype holds.
        expected = torch.where(expected.abs() > torch.finfo(dtype).max / 2, math.nan, expected)
        allowed, known = budget(rounding, errors[what], expected, dtype, convolved)
        if not known.all():
            went = "unjudged"
        far = apart(result, expected)
        if ((sizes(far) > allowed) & known).any():
            worst = far.argmax()
            text += (
                f" is off: {result.flatten()[worst].item()!r} for "
                f"{expected.flatten()[worst].item()!r}; root mean square and largest error of each "
                f"image {sizes(far).tolist()} with {allowed.tolist()} allowed"
            )
            require(False, case, backend, text)
    return went
