"""Judges calls of the structural losses on every path by the reference in float64."""

import math
import warnings
from unittest import mock

import torch
from fuzz_judge import LOST, TIMES, apart, as_given, require, shaped, sizes
from fuzz_structural_cases import TAKERS, elsewhere, images

from perceptual_losses._ssim import reference


def wanted(case, x, y):
    """The images that a gradient is asked for, and which can have one."""
    names = [name for name, dtype in zip("xy", case["dtypes"], strict=True) if dtype != "uint8"]
    return [
        image for name, image in (("x", x), ("y", y)) if name in names and name in case["wants"]
    ]


def call(case, backend, x, y, extras):
    """The result, and the gradients."""
    x, y = x.detach(), y.detach()
    images = wanted(case, x, y)
    for image in images:
        image.requires_grad_()
    out = TAKERS[case["name"]](x, y, extras, **as_given(case["options"]), backend=backend)
    if not images:
        return out, []
    generator = torch.Generator().manual_seed(5)
    # Some up, some down, none near zero.
    factors = 0.5 + torch.rand(out.shape, generator=generator, dtype=torch.float64)
    factors = torch.where(factors > 0.8, factors, -factors).to(out.dtype)
    return out.detach(), list(torch.autograd.grad(out, images, factors))


def outcome(case, backend, x, y, extras):
    """The results of `call`, and the error that it raises, one of them ``None``."""
    try:
        return call(case, backend, x, y, extras), None
    except (TypeError, ValueError) as error:
        return None, error


def noise(case, x, y, extras):
    """The reference's own error in float32, by result and image: the largest of several.

    Mirrored images, a little darker, under a window whose taps are rounded otherwise are as hard as
    they are, and what cancels by luck in one does not in all. A level's similarity is 1 less what
    is different: what a power makes of the rounding that it may have is the power's own.
    """

    def results(case, x, y, extras):
        value, gradients = call(case, "reference", x, y, extras)
        return [value, *gradients]

    found, unmoved = [], None
    for turn, flipped in enumerate(([], [-1], [-2], [-1, -2])):
        seen = [darker(image.flip(flipped), 1e-3 * turn) for image in (x, y)]
        over = {
            name: values.flip([dim for dim in flipped if values.dim() >= -dim])
            if name != "data_range"
            else values
            for name, values in extras.items()
        }
        other = {**case, "options": wider(case["options"], 1 + 1e-3 * turn)}
        exact = results(other, *(image.double() for image in seen), over)
        rough = results(other, *(image.float() for image in seen), over)
        unmoved = unmoved or exact
        errors = [sizes(apart(got, true)) for got, true in zip(rough, exact, strict=True)]
        found = list(map(torch.maximum, found, errors)) if found else errors
    # Terms that cancel to nothing in a flat image do not where a rounding is rounded. Some of a
    # subnormal pixel's products with taps are all rounding. The fast paths look at the images'
    # difference, whose roundings are for a flat image those of the other's contrast. Equal pixels
    # stay so: without a difference there is no gradient at all.
    generator = torch.Generator().manual_seed(6)
    of_x, of_y = (torch.randn(image.shape, generator=generator).double() for image in (x, y))
    parts = of_x, torch.where(x == y, of_x, of_y)
    difference = (x.double() - y.double()).nan_to_num(0, 0, 0).flatten(2)
    contrast = (difference - difference.median(2, keepdim=True).values).view_as(x)
    rounding = 16 * 2.0**-149 + 2.0**-25 * torch.where(x == y, 0.0, contrast)
    near = [
        image * (1 + 2.0**-48 * part) + rounding * part
        for image, part in zip((x, y), parts, strict=True)
    ]
    moved = [results(case, *near, extras)]
    if "weights" in case["options"]:
        means = reference.level_means
        # Two of them: of a similarity near 0 the power is far from straight.
        for by in (2.0**-22 / TIMES, -(2.0**-22) / TIMES):
            with mock.patch.object(
                reference, "level_means", lambda *args, by=by: means(*args) + by
            ):
                moved.append(results(case, x.double(), y.double(), extras))
    for outcomes in moved:
        for place, (off, true) in enumerate(zip(outcomes, unmoved, strict=True)):
            # A power of what is below 0 by a rounding is no number, and is one above.
            lost = torch.where(true.isnan() & ~off.isnan(), math.inf, apart(off, true))
            found[place] = torch.maximum(found[place], sizes(lost))
    return found


def wider(options, by):
    """Options with a window that is wider, if it has a width other than its size."""
    sigma = options.get("sigma")
    if sigma is None:
        return options
    wide = [by * each for each in sigma] if isinstance(sigma, list) else by * sigma
    return options | {"sigma": wide}


def darker(image, by):
    """By a part of each value, in float32 or float64."""
    values = image.double() * (1 - by)
    return values if image.dtype == torch.float64 else values.float()


def check(case, backend):
    """Raises unless a path does what it promises in this case.

    Returns:
        How it went: ``"refused"``, ``"judged"``, or ``"unjudged"`` where float32 can say nothing of
        some image.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(case.get("threads", threads))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _check(case, backend)
    finally:
        torch.set_num_threads(threads)


def _check(case, backend):
    x, y, extras = images(case)
    kept = x.clone(), y.clone()
    plain, refused = outcome(case, "reference", x, y, extras)
    if backend == "reference":
        got, error = plain, refused
    else:
        got, error = outcome(case, backend, x, y, extras)
    if error is not None and refused is None:
        # The path is not for such calls.
        require("cannot run" in str(error), case, backend, f"raises {error!r}")
        return "refused"
    if refused is not None:
        same = type(error) is type(refused) and str(error) == str(refused)
        require(same, case, backend, f"raises {error!r} where the reference raises {refused!r}")
        return "refused"
    for image, copy in zip((x, y), kept, strict=True):
        unchanged = torch.equal(image.detach().nan_to_num(1.25), copy.nan_to_num(1.25))
        require(unchanged, case, backend, "changes an image")

    if "valid" in extras:
        # Nothing depends on the other pixels.
        x, y = (elsewhere(image, extras["valid"], 0.0) for image in (x, y))
    exact_value, exact_gradients = call(case, "reference", x.double(), y.double(), extras)
    value, gradients = got
    double = torch.float64 in (x.dtype, y.dtype)
    kind = torch.float64 if double else torch.float32
    require(value.dtype == kind, case, backend, f"gives {value.dtype}")
    require(value.shape == exact_value.shape, case, backend, f"gives {tuple(value.shape)}")

    spoiled = ~(x.isfinite() & y.isfinite()).flatten(1).all(1)
    if case["name"] != "ssim_map":
        alive = ~value.isnan()
        hidden = (alive & spoiled).any() if value.dim() else alive & spoiled.any()
        require(not hidden, case, backend, f"hides what is not finite in its images: {value}")

    try:
        noises = noise(case, x, y, extras)
    except ValueError:
        # Only float64 has numbers for it.
        return "unjudged"
    own = [image.dtype for image in wanted(case, x, y)]
    results = [("value", value, exact_value, kind)]
    results += [("gradient", *rest) for rest in zip(gradients, exact_gradients, own, strict=True)]
    went = "judged"
    for (what, result, exact, dtype), error in zip(results, noises, strict=True):
        require(result.dtype == dtype, case, backend, f"{what} in {result.dtype}")
        require(result.shape == exact.shape, case, backend, f"{what} of {tuple(result.shape)}")
        if what == "gradient" and exact.dim():
            # NaN is near only in the image that has it.
            exact = torch.where(shaped(spoiled, exact), math.nan, exact)
        # Beyond what the gradient's dtype holds.
        exact = torch.where(exact.abs() > torch.finfo(dtype).max / 2, math.nan, exact)
        allowed, known = budget(what, double, error, exact, dtype)
        if not known.all():
            went = "unjudged"
        far = apart(result, exact)
        wrong = (sizes(far) > allowed) & known
        if what == "value":
            hidden = exact.isnan() & ~result.isnan()
            wrong |= sizes(hidden.double())[1] * known > 0
        if wrong.any():
            worst = far.argmax()
            text = (
                f"{what} is off: {result.flatten()[worst].item()!r} for "
                f"{exact.flatten()[worst].item()!r}; root mean square and largest error of each "
                f"image {sizes(far).tolist()} with {allowed.tolist()} allowed"
            )
            require(False, case, backend, text)
    return went


def budget(what, double, error, exact, dtype):
    """The largest `sizes` of the errors, and the images (or the batch) for which they are known.

    They are `TIMES` the reference's own error in float32 and one rounding. Twice is enough only for
    large images, in which errors even out (`test_the_budget_in_float32`). In small ones all of a
    gradient is off with one mean, and of many thousand calls some are unlucky. A path in float64 is
    off by 2^-29 of its error in float32, or eight times that, where a rounding counts as error.
    """
    size = sizes(exact.abs().nan_to_num(0, 0, 0))
    # A similarity is 1 less what is different.
    scale = size.clamp(min=1.0 if what == "value" else 0.0)
    known = (error <= LOST * scale[1]).all(0)
    rounding = torch.finfo(torch.float32).eps * scale
    allowed = TIMES * error + rounding
    if double:
        allowed = TIMES**2 * 2.0**-29 * (error + rounding)
    kept = torch.finfo(dtype)
    if kept.bits < (64 if double else 32):
        allowed = allowed + kept.eps * size
    return allowed.nan_to_num(math.inf, math.inf) + kept.smallest_normal * kept.eps, known
