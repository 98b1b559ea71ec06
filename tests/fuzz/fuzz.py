"""Drawn calls of every loss on every path, judged by the reference in float64.

``python tests/fuzz/fuzz.py --minutes 10`` draws until the time is up. What it finds it shrinks and
keeps in ``fuzz_cases.jsonl``, which the suite runs, as it runs some calls of its own drawing.
"""

import argparse
import collections
import importlib.metadata
import itertools
import json
import math
import os
import platform
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import fuzz_features
import hypothesis
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

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)
from perceptual_losses._ssim import reference

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.path.append(str(Path(__file__).parents[1] / "gpu" / "emulator"))
    import interpreter  # noqa: F401

KEPT = Path(__file__).parent / "fuzz_cases.jsonl"


def by_module(loss):
    return lambda x, y, *, mask=None, **options: loss(**options)(x, y, mask=mask)


TAKERS = {
    "ssim": ssim,
    "ssim_map": ssim_map,
    "ms_ssim": ms_ssim,
    "SSIMLoss": by_module(SSIMLoss),
    "MSSSIMLoss": by_module(MSSSIMLoss),
    "L1SSIMLoss": by_module(L1SSIMLoss),
    "L1MSSSIMLoss": by_module(L1MSSSIMLoss),
}
OF_LEVELS = {"ms_ssim", "MSSSIMLoss", "L1MSSSIMLoss"}


@st.composite
def cases(draw, backend, windows=None, most=40):
    """A call as JSON would keep it."""
    if windows is None:
        # Mostly few: Numba takes seconds to compile for another. None of one pixel, in which the
        # reference's terms cancel exactly, in an order that is its own.
        rare = draw(st.integers(0, 59)) == 0
        windows = range(3, 34, 2) if rare else [3, 5, 7, 11, 21]
    name = draw(st.sampled_from(sorted(TAKERS)))
    # Each plane takes the interpreter seconds.
    images, channels, most = (2, 2, 24) if backend == "triton" else (3, 4, most)
    volumes = backend != "triton" and draw(st.integers(0, 7)) == 0
    window = draw(st.sampled_from([*windows]))
    if volumes:
        window, most = min(window, 5), 10
    least = window
    levels = 1
    if name in OF_LEVELS:
        levels = draw(st.integers(1, 5 if window <= 3 and not volumes else 2))
        least = (window - 1) * 2 ** (levels - 1) + 1
    sides = draw(st.lists(st.integers(least, max(least + 5, most)), min_size=2, max_size=2))
    if volumes:
        sides.insert(0, draw(st.integers(least, least + 3)))
    elif draw(st.integers(0, 15)) == 0:
        # More columns than a strip has, or planes side by side.
        sides[1] = draw(st.sampled_from([300, 800, 2100]))
    low = draw(st.sampled_from([0.0, 0.0, -1.0, 3.5, -128.0]))
    length = draw(st.sampled_from([1.0, 255.0, 2.0, 1e-3, 65535.0]))
    dtypes = [draw(st.sampled_from(DTYPES)) for _ in "xy"]
    if "uint8" in dtypes:
        low, length = 0.0, 255.0
    options = {
        "data_range": length if low == 0 else [low, low + length],
        "window_size": window,
        "sigma": draw(st.sampled_from([1.5, 0.7, 5.0, 100.0])),
        "k1": draw(st.sampled_from([0.01, 1e-3, 0.1])),
        "k2": draw(st.sampled_from([0.03, 1e-3, 0.1])),
        "padding": draw(st.sampled_from(["valid", "zeros", "symmetric"])),
    }
    if name != "ssim_map":
        options["reduction"] = draw(st.sampled_from(["none", "mean"]))
    if name in OF_LEVELS:
        weight = st.sampled_from([0.3, 1.0, 0.0448, 0.0])
        weights = st.lists(weight, min_size=levels, max_size=levels).filter(any)
        options["weights"] = draw(weights)
        options["levels"] = draw(st.sampled_from([levels, "auto"]))
        options["normalize"] = draw(st.sampled_from(["floor", "relu", "simple", None]))
    if name in ("L1SSIMLoss", "L1MSSSIMLoss"):
        options["weight"] = draw(st.sampled_from([0.5, 0.0, 1.0]))
    case = {
        "name": name,
        "shape": [draw(st.integers(1, images)), draw(st.integers(1, channels)), *sides],
        "content": draw(st.sampled_from(sorted(CONTENTS))),
        "seed": draw(st.integers(0, 3)),
        "dtypes": dtypes,
        "layouts": [draw(st.sampled_from(list(LAYOUTS))) for _ in "xy"],
        "wants": draw(st.sampled_from(["xy", "x", "y", ""])),
        "options": options,
    }
    if name != "ssim_map":
        case["mask"] = draw(st.sampled_from([None] * len(MASKS) + list(MASKS)))
        if draw(st.integers(0, 31)) == 0:
            case["mask"] = draw(st.sampled_from(list(WRONG_MASKS)))
    if draw(st.integers(0, 3)) == 0:
        spoil = st.sampled_from(["nan", "inf", "-inf"])
        place = st.tuples(st.sampled_from("xy"), st.floats(0, 0.999), spoil)
        case["spoiled"] = draw(st.lists(place.map(list), min_size=1, max_size=2))
    if draw(st.integers(0, 11)) == 0:
        known = [wrong for wrong in WRONG if options.keys() >= wrong.keys()]
        case["options"] |= draw(st.sampled_from(known))
    if draw(st.integers(0, 3)) == 0:
        case["threads"] = draw(st.integers(1, 3))
    return case


# What is refused, or at the edge of what can be computed: by every path in the same words.
WRONG = [
    {"k1": 1e200},
    {"window_size": 4},
    {"window_size": 43},
    {"window_size": 3.0},
    {"window_size": True},
    {"sigma": 0.0},
    {"sigma": 1e200},
    {"sigma": float("nan")},
    {"k1": -1.0},
    {"k2": 1e-200},
    {"k2": 0},
    {"data_range": 0},
    {"data_range": [1.0, -1.0]},
    {"data_range": [0.0, 1.0, 2.0]},
    {"data_range": 1e-30},
    {"data_range": 1e30},
    {"data_range": [-1e308, 1e308]},
    {"data_range": 10**400},
    {"data_range": "1"},
    {"padding": "reflect"},
    {"reduction": "sum"},
    {"weights": []},
    {"weights": [-1.0, 2.0]},
    {"weights": [1e300, 1e300]},
    {"levels": 9},
    {"levels": 0},
    {"normalize": "sigmoid"},
    {"weight": 1.5},
]


def random_mask(x):
    generator = torch.Generator().manual_seed(9)
    return torch.rand(x.shape[0], 1, *x.shape[2:], generator=generator)


MASKS = {
    "random": random_mask,
    "boolean": lambda x: random_mask(x) > 0.5,
    "plane": lambda x: random_mask(x)[0, 0],
    "half": lambda x: (torch.arange(x.shape[-1]) * 2 >= x.shape[-1]).expand(x.shape[-2:]),
    "images": lambda x: 1.0 + torch.arange(x.shape[0]).reshape(-1, *[1] * (x.dim() - 1)),
    "thirds": lambda x: random_mask(x).lt(1 / 3).double(),
}
WRONG_MASKS = {
    "zero": lambda x: torch.zeros(1, 1, *[1] * (x.dim() - 2)),
    "wrong": lambda x: torch.ones(x.shape[0] + 1, *[1] * (x.dim() - 1)),
}


def images(case):
    """The two images of a case, and its mask."""
    generator = torch.Generator().manual_seed(case["seed"])
    shape = case["shape"]
    a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in "xy")
    pair = CONTENTS[case["content"]](a, b)
    low, length = 0.0, case["options"]["data_range"]
    if isinstance(length, list):
        low, length = length[0], length[1] - length[0]
    if not isinstance(length, float):
        low, length = 0.0, 1.0
    out = []
    for image, dtype in zip(pair, case["dtypes"], strict=True):
        image = low + length * image
        image = image.clamp(0, 255) if dtype == "uint8" else image
        out.append(image.to(getattr(torch, dtype)))
    out = spoil(out, case.get("spoiled", []))
    mask = case.get("mask")
    laid = [LAYOUTS[layout](image) for image, layout in zip(out, case["layouts"], strict=True)]
    return *laid, None if mask is None else (MASKS | WRONG_MASKS)[mask](a)


def wanted(case, x, y):
    """The images that a gradient is asked for, and which can have one."""
    names = [name for name, dtype in zip("xy", case["dtypes"], strict=True) if dtype != "uint8"]
    return [
        image for name, image in (("x", x), ("y", y)) if name in names and name in case["wants"]
    ]


def call(case, backend, x, y, mask):
    """The result, and the gradients."""
    x, y = x.detach(), y.detach()
    images = wanted(case, x, y)
    for image in images:
        image.requires_grad_()
    keywords = {} if mask is None else {"mask": mask}
    out = TAKERS[case["name"]](x, y, **keywords, **case["options"], backend=backend)
    if not images:
        return out, []
    generator = torch.Generator().manual_seed(5)
    # Some up, some down, none near zero.
    factors = 0.5 + torch.rand(out.shape, generator=generator, dtype=torch.float64)
    factors = torch.where(factors > 0.8, factors, -factors).to(out.dtype)
    return out.detach(), list(torch.autograd.grad(out, images, factors))


def outcome(case, backend, x, y, mask):
    """`call`, or what it raises."""
    try:
        return call(case, backend, x, y, mask), None
    except (TypeError, ValueError) as error:
        return None, error


def noise(case, x, y, mask):
    """The reference's own error in float32, by result and image: the largest of several.

    Mirrored images, a little darker, under a window whose taps are rounded otherwise are as hard as
    they are, and what cancels by luck in one does not in all. A level's similarity is 1 less what
    is different: what a power makes of the rounding that it may have is the power's own.
    """

    def results(case, x, y, mask):
        value, gradients = call(case, "reference", x, y, mask)
        return [value, *gradients]

    found, unmoved = [], None
    for turn, flipped in enumerate(([], [-1], [-2], [-1, -2])):
        seen = [darker(image.flip(flipped), 1e-3 * turn) for image in (x, y)]
        sides = [dim for dim in flipped if mask is not None and mask.dim() >= -dim]
        over = None if mask is None else mask.flip(sides)
        sigma = case["options"]["sigma"] * (1 + 1e-3 * turn)
        other = {**case, "options": case["options"] | {"sigma": sigma}}
        exact = results(other, *(image.double() for image in seen), over)
        rough = results(other, *(image.float() for image in seen), over)
        unmoved = unmoved or exact
        errors = [sizes(apart(got, true)) for got, true in zip(rough, exact, strict=True)]
        found = list(map(torch.maximum, found, errors)) if found else errors
    # What cancels to nothing in a flat image does not where a rounding is rounded. Some of a
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
    moved = [results(case, *near, mask)]
    if "weights" in case["options"]:
        means = reference.level_means
        # Two of them: of a similarity near 0 the power is far from straight.
        for by in (2.0**-22 / TIMES, -(2.0**-22) / TIMES):
            with mock.patch.object(
                reference, "level_means", lambda *args, by=by: means(*args) + by
            ):
                moved.append(results(case, x.double(), y.double(), mask))
    for outcomes in moved:
        for place, (off, true) in enumerate(zip(outcomes, unmoved, strict=True)):
            # A power of what is below 0 by a rounding is no number, and is one above.
            lost = torch.where(true.isnan() & ~off.isnan(), math.inf, apart(off, true))
            found[place] = torch.maximum(found[place], sizes(lost))
    return found


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
    x, y, mask = images(case)
    kept = x.clone(), y.clone()
    plain, refused = outcome(case, "reference", x, y, mask)
    if backend == "reference":
        got, error = plain, refused
    else:
        got, error = outcome(case, backend, x, y, mask)
    if error is not None and refused is None:
        # What a path is not for.
        require("cannot run" in str(error), case, backend, f"raises {error!r}")
        return "refused"
    if refused is not None:
        same = type(error) is type(refused) and str(error) == str(refused)
        require(same, case, backend, f"raises {error!r} where the reference raises {refused!r}")
        return "refused"
    for image, copy in zip((x, y), kept, strict=True):
        unchanged = torch.equal(image.detach().nan_to_num(1.25), copy.nan_to_num(1.25))
        require(unchanged, case, backend, "changes an image")

    exact_value, exact_gradients = call(case, "reference", x.double(), y.double(), mask)
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
        noises = noise(case, x, y, mask)
    except ValueError:
        # What float64 alone has numbers for.
        return "unjudged"
    own = [image.dtype for image in wanted(case, x, y)]
    results = [("value", value, exact_value, kind)]
    results += [("gradient", *rest) for rest in zip(gradients, exact_gradients, own, strict=True)]
    went = "judged"
    for (what, result, exact, dtype), error in zip(results, noises, strict=True):
        require(result.dtype == dtype, case, backend, f"{what} in {result.dtype}")
        require(result.shape == exact.shape, case, backend, f"{what} of {tuple(result.shape)}")
        if what == "gradient" and exact.dim():
            # Not a number near what is none, in its own image alone.
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
    """What `sizes` of the errors may be, and for which images (or the batch) that can be said.

    So many times the reference's own error in float32 and one rounding. Twice is for large images,
    in which errors even out (`test_the_budget_in_float32`); in small ones all of a gradient is off
    with one mean, and of many thousand calls some are unlucky. A path in float64 is off by 2^-29 of
    what it would be in float32, or eight times that again, where a rounding counts as error.
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


# What is drawn and how it is judged, by backend; the losses on features choose theirs themselves.
KINDS = {backend: (cases(backend), check) for backend in ("numba", "reference", "triton")}
KINDS["features"] = (fuzz_features.cases(), fuzz_features.check)
# In a round: some seconds of each.
EXAMPLES = {"numba": 100, "reference": 100, "features": 25, "triton": 10}


def failing(backend, seed, examples):
    """Draws cases: how they went, and the smallest that fails, with what it says, or ``None``."""
    tally = collections.Counter()
    found = []
    drawn, check = KINDS[backend]

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(drawn)
    def run(case):
        # What comes after a failure shrinks it, and is not drawn.
        drawing = not found
        went = "failed"
        try:
            went = check(case, backend)
        except Violation as violation:
            found.append((case, str(violation)))
            raise
        except Exception as error:
            found.append((case, f"{error!r}\n  check({case!r}, {backend!r})"))
            raise
        finally:
            tally[case["name"], went] += drawing

    try:
        run()
    except Exception:
        if not found:  # Hypothesis's own.
            raise
        # A call's, recorded above: the last to run is the smallest.
        return tally, found[-1]
    return tally, None


def main():
    """Draws cases until the time is up, and says what failed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, help="of the first round; the time if not given")
    # The reference is half of what the others are judged by: it gets a round in five.
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=["numba", "reference", "features"],
        default=["numba", "features", "numba", "features", "reference"],
        help="a round each in turn",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz.json"))
    options = parser.parse_args()
    seed = int(time.time()) if options.seed is None else options.seed
    backends = options.backends
    if os.environ.get("TRITON_INTERPRET") == "1":
        backends = ["triton"]
    begin = time.monotonic()
    tally, violations = collections.Counter(), []
    for turn in itertools.count():
        if time.monotonic() - begin > 60 * options.minutes:
            break
        backend = backends[turn % len(backends)]
        went, failed = failing(backend, seed + turn, EXAMPLES[backend])
        for (name, how), count in went.items():
            tally[backend, name, how] += count
        if failed is not None:
            case, text = failed
            print(text, flush=True)
            violations.append({"backend": backend, "case": case, "text": text})
            with KEPT.open("a") as file:
                file.write(json.dumps({"backend": backend, "case": case}) + "\n")
    report = {
        "seed": seed,
        "minutes": round((time.monotonic() - begin) / 60, 2),
        "calls": sum(tally.values()),
        "cases": [
            {"backend": backend, "loss": name, "outcome": how, "count": count}
            for (backend, name, how), count in sorted(tally.items())
        ],
        "violations": violations,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("torch", "numba", "numpy", "hypothesis")
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['calls']} calls, {len(violations)} violations: {options.out}")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
