"""What Triton compiles for GPUs, run on the CPU: with the shared memory and the machine's own
instructions that Triton's interpreter does not have.
"""

import os
import re

import pytest
import torch

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import tiles as gpu_tiles

MISSING = gpu.unavailable(torch.device("cpu"))
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter is switched on"
    ),
]

LEVELS = {"window_size": 3, "weights": (0.1, 0.2, 0.3, 0.4)}
# The tiles of eleven taps, and fewer instructions to compile and to run.
FIVE = {"window_size": 5}


def less(loss):
    """The similarity that is 1 less the loss, which the kernels write in other ways than means."""
    return lambda x, y, **options: 1 - loss(**options)(x, y)


def of_valid(similarity):
    """The similarity of images of which some pixels do not exist."""

    def function(x, y, **options):
        valid = torch.rand(x.shape[2:], generator=torch.Generator().manual_seed(0)) < 0.8
        return similarity(x, y, valid=valid, **options)

    return function


def of_map(x, y, **options):
    """A weighted mean of the map."""
    values = ssim_map(x, y, **options)
    return (values * torch.linspace(0, 2, values.shape[3])).mean()


def of_ranges(similarity):
    """The similarity of images with ranges of their own."""
    return lambda x, y, **options: similarity(
        x, y, data_range=torch.linspace(0.5, 2, len(x)), **options
    )


# Similarity, shape, options, and whether there is a mask.
CASES = {
    "plain": (ssim, (1, 2, 24, 48), {}, False),
    "odd": (ssim, (2, 1, 23, 45), {}, False),
    "strips": (less(SSIMLoss), (1, 1, 15, 300), {}, False),
    "zeros": (ssim, (1, 1, 12, 37), {**FIVE, "padding": "zeros"}, False),
    # Whole threads' columns.
    "padded": (ssim, (1, 1, 12, 48), {"padding": "zeros", "data_range": (-1, 1)}, False),
    "mask": (ssim, (1, 2, 14, 40), {**FIVE, "padding": "symmetric"}, True),
    "window-21": (ssim, (1, 1, 25, 140), {"window_size": 21, "sigma": 3.0}, False),
    "window-33": (ssim, (1, 1, 33, 37), {"window_size": 33, "padding": "zeros"}, True),
    "levels": (less(MSSSIMLoss), (1, 1, 50, 63), LEVELS, False),
    "distance": (less(L1MSSSIMLoss), (1, 1, 40, 304), LEVELS, False),
    "mix": (less(L1SSIMLoss), (2, 1, 14, 300), {**FIVE, "padding": "zeros"}, False),
    "valid": (of_valid(ssim), (2, 1, 17, 44), {**FIVE, "padding": "zeros"}, True),
    "valid-levels": (of_valid(ms_ssim), (1, 1, 40, 63), LEVELS, False),
    "map": (of_map, (2, 2, 15, 45), FIVE, False),
    "ranges": (of_ranges(ms_ssim), (3, 1, 33, 46), LEVELS, False),
    "wide": (ssim, (1, 1, 15, 130), {"window_size": (3, 7), "sigma": (0.5, 3.0)}, False),
    "mix-33": (less(L1SSIMLoss), (1, 1, 33, 37), {"window_size": 33}, False),
}
LAYOUTS = {
    "float32": lambda image: image,
    "bfloat16": lambda image: image.bfloat16(),
    "float16": lambda image: image.half(),
    "channels_last": lambda image: image.contiguous(memory_format=torch.channels_last),
    # Not where an access of several values may begin.
    "unaligned": lambda image: torch.nn.functional.pad(image, (1, 15))[..., 1:-15],
}


def judge(capability, case, gradients, layout=LAYOUTS["float32"], multiprocessors=2):
    """Value and gradients as compiled for a GPU against the reference path in float64."""
    import ptx

    function, shape, options, masked = CASES[case]
    x = torch.rand(shape)
    y = (x + 0.3 * torch.rand(shape)).clamp(0, 1)
    # The difference of equal pixels has no sign.
    y[..., :2] = x[..., :2]
    images = [layout(x), layout(y)]
    options = {**options, **({"mask": torch.rand(shape[0], 1, *shape[2:])} if masked else {})}

    def run(backend, images):
        images = [image.requires_grad_(i < gradients) for i, image in enumerate(images)]
        loss = 1 - function(*images, **options, backend=backend)
        wanted = [image for image in images if image.requires_grad]
        return loss.detach(), torch.autograd.grad(loss, wanted) if wanted else []

    with ptx.running(capability, multiprocessors):
        loss, found = run("triton", [image.detach() for image in images])
    expected, exact = run("reference", [image.double() for image in images])
    assert abs(loss - expected) < 1e-6
    # The last rounding of a gradient, and what float32 loses before it.
    rounding = torch.finfo(images[0].dtype).eps
    for gradient, target in zip(found, exact, strict=True):
        assert gradient.dtype == images[0].dtype
        assert (gradient - target).norm() < max(rounding, 1e-5) * target.norm()


# What a kernel does for no gradient, for one and for two, it does alike for all of these.
GRADIENTS = {
    **{"plain": (0, 1, 2), "strips": (0, 1, 2), "levels": (0, 1, 2), "mix": (0, 1, 2)},
    **{"zeros": (0, 1), "mask": (0, 1), "window-33": (0, 1), "distance": (0, 1)},
    "mix-33": (1,),
}


@pytest.mark.parametrize(
    ("case", "gradients"),
    [(case, gradients) for case in CASES for gradients in GRADIENTS.get(case, (0, 2))],
)
def test_hopper(case, gradients):
    judge(90, case, gradients)


@pytest.mark.parametrize(
    ("case", "gradients"), [("plain", 0), ("odd", 1), ("mask", 2), ("levels", 1)]
)
def test_ampere(case, gradients):
    judge(80, case, gradients)


@pytest.mark.parametrize(
    ("case", "layout", "gradients"),
    [
        # Threads have four columns where there is no gradient, and two where there is one.
        *(("plain", layout, 1) for layout in ("bfloat16", "float16", "channels_last")),
        *(("plain", layout, 0) for layout in ("bfloat16", "unaligned")),
        # As pairs where padding is not zero, and where the distance is taken too.
        *(("padded", "bfloat16", 0), ("padded", "bfloat16", 1)),
        *(("distance", "bfloat16", 1), ("mix", "bfloat16", 0)),
    ],
)
def test_layouts(case, layout, gradients):
    judge(90, case, gradients, LAYOUTS[layout])


@pytest.mark.parametrize("layout", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kernel", "tile"),
    [
        (kernel, tile)
        for kernel, tiles in gpu_tiles.TILES[None][11]._asdict().items()
        for tile in tiles
        if kernel != "gradient"
    ],
    ids=lambda part: "x".join(map(str, part[:2])) if isinstance(part, tuple) else None,
)
def test_every_tile(monkeypatch, kernel, tile, layout):
    """Those too that images of another size have."""
    sizes = gpu_tiles.TILES[None]
    one = {**sizes, 11: sizes[11]._replace(**{kernel: (tile,)})}
    monkeypatch.setitem(gpu_tiles.TILES, None, one)
    case, gradients = {
        "plain_value": ("plain", 0),
        "fused": ("plain", 1),
        "value": ("padded", 0),
    }[kernel]
    judge(90, case, gradients, LAYOUTS[layout])


@pytest.mark.parametrize("gradients", [0, 1])
def test_programs_of_all_multiprocessors(gradients):
    """More of them than strips: bands of rows, and those that begin in one strip and end in the
    next.
    """
    judge(90, "strips", gradients, multiprocessors=7)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ((r"bar\.sync", "// bar.sync"), "race for words"),
        ((r" \+ 8\]", " + 12]"), "an access of 8 bytes at"),
        # All threads are at the count when one of them adds to it.
        (
            (r"(@%p\d+ atom[^[]*)(\[.*?\])", r"ld.global.b32 %r99999, \2; \1\2"),
            "access memory while",
        ),
    ],
)
def test_what_a_gpu_would_not_tell(monkeypatch, change, error):
    """The judge itself: without barriers threads race, and so on."""
    import ptx

    parsed = ptx.parsed
    monkeypatch.setattr(ptx, "parsed", lambda text: parsed(re.sub(*change, text)))
    with pytest.raises(RuntimeError, match=error):
        judge(90, "odd", 1)


def test_accesses_beyond_the_tensors(monkeypatch):
    import ptx

    places = ptx.Memory.places
    monkeypatch.setattr(
        ptx.Memory, "places", lambda self, at, size: places(self, at, size + 16 * 45 * 4)
    )
    with pytest.raises(RuntimeError, match="bytes, at"):
        judge(90, "odd", 1)
