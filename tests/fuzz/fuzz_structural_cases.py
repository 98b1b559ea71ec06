"""Drawn calls of the structural losses."""

import functools

import torch
from fuzz_judge import CONTENTS, DTYPES, LAYOUTS, bright, spoil
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


def by_function(function):
    return lambda x, y, extras, **options: function(x, y, **{**options, **extras})


def by_module(loss):
    return lambda x, y, extras, **options: loss(**options)(x, y, **extras)


TAKERS = {
    "ssim": by_function(ssim),
    "ssim_map": by_function(ssim_map),
    "ms_ssim": by_function(ms_ssim),
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
    sizes = [window] * (3 if volumes else 2)
    if draw(st.integers(0, 5)) == 0:
        sizes = window = [5, 3, 3] if volumes else [windows[0], windows[-1]]
    levels = 1
    if name in OF_LEVELS:
        levels = draw(st.integers(1, 5 if max(sizes) <= 3 and not volumes else 2))
    least = [(size - 1) * 2 ** (levels - 1) + 1 for size in sizes]
    sides = [draw(st.integers(side, max(side + 5, most))) for side in least]
    if volumes:
        sides[0] = draw(st.integers(least[0], least[0] + 3))
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
        "window": draw(st.sampled_from(["gaussian", "gaussian", "uniform"])),
        "window_size": window,
        "sample_covariance": draw(st.sampled_from([False, False, True])),
        "k1": draw(st.sampled_from([0.01, 1e-3, 0.1])),
        "k2": draw(st.sampled_from([0.03, 1e-3, 0.1])),
        "padding": draw(st.sampled_from(["valid", "zeros", "symmetric"])),
    }
    if options["window"] == "gaussian":
        sigmas = [1.5, 0.7, 5.0, 100.0]
        by_axis = [[1.5, 0.7, 5.0][: len(sizes)]]
        options["sigma"] = draw(st.sampled_from(2 * sigmas + by_axis))
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
        "content": draw(st.sampled_from(sorted(CONTENTS)) | st.sampled_from(sorted(FAR))),
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
        case["valid"] = draw(st.sampled_from(list(VALID)))
        case["garbage"] = draw(st.sampled_from([None, "nan", "inf", "1e30"]))
    if draw(st.integers(0, 3)) == 0:
        count = case["shape"][0]
        lengths = st.sampled_from([255.0] if "uint8" in dtypes else [1.0, 255.0, 1e-3, 65535.0])
        case["ranges"] = draw(st.lists(lengths, min_size=count, max_size=count))
        if draw(st.integers(0, 15)) == 0:
            case["ranges"] = draw(st.sampled_from([[0.0] * count, [1.0] * (count + 1)]))
    if draw(st.integers(0, 3)) == 0:
        spoil = st.sampled_from(["nan", "inf", "-inf"])
        place = st.tuples(st.sampled_from("xy"), st.floats(0, 0.999), spoil)
        case["spoiled"] = draw(st.lists(place.map(list), min_size=1, max_size=2))
    if draw(st.integers(0, 11)) == 0:
        known = [wrong for wrong in WRONG if options.keys() >= wrong.keys()]
        options |= draw(st.sampled_from(known))
    if draw(st.integers(0, 3)) == 0:
        case["threads"] = draw(st.integers(1, 3))
    return case


# Options that every path refuses in the same words, or at the edge of what can be computed.
WRONG = [
    {"k1": 1e200},
    {"window_size": 4},
    {"window_size": 43},
    {"window_size": 3.0},
    {"window_size": True},
    {"window_size": [3, 4]},
    {"window_size": [3, 3, 3, 3]},
    {"window_size": [3, 43]},
    {"window": "box"},
    {"sample_covariance": 1},
    {"sigma": [1.5, 1.5, 1.5, 1.5]},
    {"sigma": [1.5, 0.0]},
    {"window": "uniform", "sigma": 2.0},
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


# The pixels that exist.
VALID = {
    "most": lambda x: random_mask(x) < 0.9,
    "thirds": lambda x: random_mask(x) < 1 / 3,
    "few": lambda x: random_mask(x) < 0.05,
    "plane": lambda x: random_mask(x)[0, 0] < 0.7,
    "block": lambda x: ~MASKS["half"](x),
    "all": lambda x: random_mask(x) < 2,
    "none": lambda x: random_mask(x) > 2,
}


def blob(a):
    """A smooth hill, as high as 1."""
    grids = torch.meshgrid(
        *[torch.linspace(-3, 3, side, dtype=a.dtype) for side in a.shape[2:]], indexing="ij"
    )
    return torch.exp(-sum(grid.square() for grid in grids))


def step(a):
    return (torch.arange(a.shape[-1]) * 2 >= a.shape[-1]).to(a.dtype)


# Images with values so far from the range.
FAR = {
    f"{kind} {height:g}": functools.partial(content, height)
    for height in (10.0, 1e2, 1e3, 1e4, 1e5, 1e6)
    for kind, content in (
        ("step", lambda h, a, b: (a + h * step(a), 0.7 * a + 0.3 * b)),
        ("steps", lambda h, a, b: (a + h * step(a), b + h * step(a))),
        ("blob", lambda h, a, b: (a + h * blob(a), a)),
        ("noise", lambda h, a, b: (h * (a - 0.5), b)),
        ("noises", lambda h, a, b: (h * (a - 0.5), 0.7 * h * a + 0.3 * b)),
        ("pixel", lambda h, a, b: (bright(a, h), 0.7 * a + 0.3 * b)),
    )
}


def images(case):
    """The two images of a case, and the tensors beside them by name."""
    generator = torch.Generator().manual_seed(case["seed"])
    shape = case["shape"]
    a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in "xy")
    pair = (CONTENTS | FAR)[case["content"]](a, b)
    low, length = 0.0, case["options"]["data_range"]
    if isinstance(length, list):
        low, length = length[0], length[1] - length[0]
    if not isinstance(length, float):
        low, length = 0.0, 1.0
    extras = {}
    if (name := case.get("mask")) is not None:
        extras["mask"] = (MASKS | WRONG_MASKS)[name](a)
    if "ranges" in case:
        extras["data_range"] = torch.tensor(case["ranges"], dtype=torch.float64)
        low, length = 0.0, extras["data_range"][: len(a)].reshape(-1, *[1] * (a.dim() - 1))
    out = []
    for image, dtype in zip(pair, case["dtypes"], strict=True):
        image = low + length * image
        image = image.clamp(0, 255) if dtype == "uint8" else image
        out.append(image.to(getattr(torch, dtype)))
    out = spoil(out, case.get("spoiled", []))
    if "valid" in case:
        extras["valid"] = VALID[case["valid"]](a)
        if (garbage := case.get("garbage")) is not None:
            out = [elsewhere(image, extras["valid"], float(garbage)) for image in out]
    laid = [LAYOUTS[layout](image) for image, layout in zip(out, case["layouts"], strict=True)]
    return *laid, extras


def elsewhere(image, valid, value):
    """An image with this value where pixels are not valid, if its dtype has it."""
    return torch.where(valid, image, value) if image.is_floating_point() else image
