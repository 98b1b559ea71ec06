"""Drawn calls of the losses on features on CPUs, judged by their definition in float64.

A rectifier and a maximum choose, by the sign or the order of what may be apart by a rounding, and a
gradient differs as much as the choices do. So features are judged by those in float64, and the
value and the gradients by what follows in float64 from the features that the path itself has seen.
"""

import contextlib
import math
import warnings
from unittest import mock

import torch
from fuzz_features_cases import (
    TAKERS,
    WRONG_IMAGES,
    images,
    linear,
    low_and_length,
    network,
    plan_of,
    smallest_of,
    trunk_of,
    weighed,
)
from fuzz_judge import LOST, TIMES, Violation, apart, as_given, require, shaped, sizes
from torch.nn import functional

from perceptual_losses import vgg_features
from perceptual_losses._features import winograd as convolution


def made(case, seen=None):
    """The loss of a case, or what gives the features of such layers."""
    _, backbone, _ = weighed(case)
    options = {"weights": network(backbone, case["network"])}
    if case["trunk"] not in (None, "doubled"):
        options["dtype"] = getattr(torch, case["trunk"])
    if seen is not None:
        options["data_range"] = as_given(case["options"])["data_range"]
        module = vgg_features(seen, backbone=backbone, **options)
        return module.double() if case["trunk"] == "doubled" else module
    if case["backbone"] is not None:
        options["backbone"] = case["backbone"]
    if case["name"] == "LPIPSLoss":
        options["linear"] = linear(backbone)
    else:
        options["layers"] = case["layers"]
    options |= as_given(case["options"] | case.get("wrong", {}))
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
    """The package's outputs, and the gradients."""
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
    """The features of all layers, by the definition.

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
    """The features divided by their length at each place.

    Where all are zero so are the result and its derivative.
    """
    squared = feature.square().sum(1, keepdim=True)
    squared = torch.where(squared.isinf(), math.nan, squared)
    dark = squared == 0
    return torch.where(dark, 0.0, feature / (torch.where(dark, 1.0, squared).sqrt() + 1e-10))


def gram(feature):
    return torch.einsum("nchw,ndhw->ncd", feature, feature) / feature[0].numel()


def distance(case, a, b):
    """The distance of the features of two images, as the docstrings define it."""
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


# The rounding of the features. In float32 it is what `vgg_features` documents of a convolution, for
# images of a pixel, where one of nine taps meets it and fewer products are rounded like all of
# them. In float64 it is some roundings, in half precision that of the stored value. The roundings
# of several convolutions are independent.
ROUNDING = {
    torch.float32: 3 * 1e-6,
    torch.float64: 1e-14,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}


def budget(rounding, error, exact, dtype, convolved):
    """The largest `sizes` of the errors, and the images (or the batch) for which they are known.

    They are `TIMES` the definition's own error in the network's dtype, the cost of fewer products
    relative to the convolution's output, and one rounding of the result. A ReLU may leave little of
    that output.
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
        # An output that stays finite has not seen it.
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
            # NaN is near only in the image that has it.
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
