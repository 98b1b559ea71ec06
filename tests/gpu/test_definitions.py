"""The definitions beside the paper's own on the GPU path, in Triton's interpreter: each against the
reference path in float64.
"""

import pytest
import torch

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    _evaluator,
    ms_ssim,
    ssim,
    ssim_map,
)
from perceptual_losses._ssim import autograd
from perceptual_losses._ssim.backend import NO_AUXILIARY
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import combine as gpu_combine
from perceptual_losses._ssim.gpu import levels as gpu_levels
from perceptual_losses._ssim.gpu import programs
from perceptual_losses._ssim.gpu import tiles as gpu_tiles
from perceptual_losses._ssim.request import Definition, gaussian

MISSING = gpu.unavailable(torch.device("cpu"))
pytestmark = [
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
    pytest.mark.interpreted,
]

PADDINGS = ["valid", "zeros", "symmetric"]
TWO_LEVELS = {"weights": (0.4, 0.6), "window_size": 3}
FUSED, MAPS = (16, 2, True), (32, 1, False)
# The kernels take seconds: each scheme and each padding, but not each with each.
SCHEMES = pytest.mark.parametrize(
    ("scheme", "padding"), [(FUSED, "valid"), (MAPS, "zeros"), (FUSED, "symmetric")]
)


@pytest.fixture
def tiles(monkeypatch):
    """Makes tiles small, so that images cross their edges: threads, their columns, and whether one
    kernel has all of a level.
    """

    def small(lanes, columns, fused):
        tiles = (gpu_tiles.Tile(lanes, columns, 1, 8, store_after_read=columns == 2),)
        of_kernels = gpu_tiles.KernelTiles(tiles, tiles if fused else (), tiles, tiles)
        monkeypatch.setattr(gpu_tiles, "TILES", {None: {33: of_kernels}})
        monkeypatch.setattr(gpu, "machine_of", lambda device: programs.Machine("cpu", 2))
        monkeypatch.setattr(gpu_levels, "TILES", 4)
        monkeypatch.setattr(gpu_combine, "ROWS", 8)
        monkeypatch.setattr(gpu_combine, "COLUMNS", 16)
        monkeypatch.setattr(gpu_levels, "HALVED_ROWS", 8)
        monkeypatch.setattr(gpu_levels, "HALVED_COLUMNS", 16)
        # Plans of other tests have other tiles.
        _evaluator._evaluator.cache_clear()

    yield small
    _evaluator._evaluator.cache_clear()


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    return x, 0.6 * x + 0.4 * torch.rand(shape, generator=generator)


def step(function, images, wanted, backend, **options):
    """The value of a function, and the gradients of the images that are wanted."""
    images = [image.detach().requires_grad_(j in wanted) for j, image in enumerate(images)]
    value = function(*images, backend=backend, **options)
    weights = torch.rand(value.shape, generator=torch.Generator().manual_seed(3))
    inputs = [images[j] for j in wanted]
    gradients = torch.autograd.grad((value * weights).sum(), inputs) if wanted else ()
    return value.detach(), *gradients


def compare(function, images, wanted=(0, 1), tolerance=3e-6, **options):
    """What the kernels give, which is what the reference path gives in float64."""
    found = step(function, images, wanted, "triton", **options)
    exact = step(function, [image.double() for image in images], wanted, "reference", **options)
    for got, true in zip(found, exact, strict=True):
        assert got.dtype == torch.float32
        assert got.shape == true.shape
        assert (got - true).norm() < tolerance * max(true.norm(), 1e-3)
    return found


def loss_of(kind):
    """A function like `ssim` that gives the loss of this kind."""
    return lambda x, y, *, backend, **options: kind(backend=backend, **options)(x, y)


# Bounds


@pytest.mark.parametrize("above", [1e4, 1e17])
@pytest.mark.parametrize("scheme", [FUSED, MAPS])
def test_pixels_far_beyond_the_range_leave_the_others(tiles, scheme, above):
    tiles(*scheme)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 1, 16, 40, generator=generator)
    x[..., :20] += above
    value, *gradients = step(ssim, (x, y), (0, 1), "triton", window_size=5)
    exact, *_ = step(ssim, (x.double(), y.double()), (), "reference", window_size=5)
    assert abs(value - exact) < 1e-4
    assert -1 <= value <= 1
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("loss", "normalize"),
    [
        *((MSSSIMLoss, normalize) for normalize in ("floor", "relu", "simple", None)),
        (L1MSSSIMLoss, "floor"),
    ],
)
def test_levels_of_pixels_far_beyond_the_range_are_finite(tiles, loss, normalize):
    tiles(*FUSED)
    x, y = pair(1, 1, 12, 18)
    x[..., :9] += 1e6
    options = {**TWO_LEVELS, "weights": (1.0, 1.0)} if normalize is None else TWO_LEVELS
    value, gradient = step(loss_of(loss), (x, y), (0,), "triton", normalize=normalize, **options)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_opposite_images_are_no_less_similar_than_possible(tiles):
    """Whatever a reciprocal is rounded to."""
    tiles(*FUSED)
    x = torch.randint(0, 2, (1, 1, 12, 18), generator=torch.Generator().manual_seed(0)) - 0.5
    for data_range in ((0, 1), (-0.5, 0.5)):
        options = {"window_size": 3, "k1": 1e-9, "k2": 1e-9, "data_range": data_range}
        assert -1 <= ssim(x, -x, backend="triton", **options) <= 1


# Windows by axis

WINDOWS = {
    "tall": {"window_size": (7, 3)},
    "wide": {"window_size": (3, 7), "sigma": (0.5, 3.0)},
    "row": {"window_size": (1, 5), "window": "uniform"},
    "column": {"window_size": (5, 1), "window": "uniform"},
    "uniform": {"window_size": 7, "window": "uniform", "sample_covariance": True},
    "sigmas": {"window_size": 5, "sigma": (0.7, 2.0), "sample_covariance": True},
}


@pytest.mark.parametrize(
    ("windows", "padding"),
    [
        *(("wide", padding) for padding in PADDINGS),
        *(("tall", "valid"), ("row", "valid"), ("column", "zeros")),
        *(("uniform", "zeros"), ("sigmas", "symmetric")),
    ],
)
def test_windows_by_axis(tiles, windows, padding):
    tiles(*(MAPS if windows in ("tall", "column") else FUSED))
    compare(ssim, pair(1, 2, 11, 37), padding=padding, **WINDOWS[windows])


@pytest.mark.parametrize(("windows", "padding"), [("tall", "valid"), ("wide", "symmetric")])
def test_values_of_windows_by_axis(tiles, windows, padding):
    tiles(16, 4, True)
    options = {"padding": padding, **WINDOWS[windows]}
    compare(ssim, pair(2, 1, 9, 70), (), **options)
    compare(loss_of(L1SSIMLoss), pair(2, 1, 9, 70), (), **options)


@pytest.mark.parametrize("wanted", [(), (1,)])
@pytest.mark.parametrize("windows", ["tall", "wide"])
def test_levels_of_windows_by_axis(tiles, windows, wanted):
    tiles(*FUSED)
    options = {"weights": (0.2, 0.3, 0.5), "padding": "zeros", **WINDOWS[windows]}
    compare(ms_ssim, pair(1, 1, 27, 37), wanted, mask=torch.rand(27, 37), **options)
    del options["padding"]
    compare(loss_of(L1MSSSIMLoss), pair(1, 1, 28, 40), wanted, **options)


@pytest.mark.parametrize("size", [(3, 7), (7, 3)])
@pytest.mark.parametrize("scheme", [FUSED, MAPS])
def test_what_is_not_finite_stays_in_its_windows(tiles, scheme, size):
    tiles(*scheme)
    x, y = pair(1, 1, 20, 41)
    x[..., 10, 20] = float("nan")
    _, gradient = step(ssim, (x, y), (0,), "triton", window_size=size)
    rows, columns = gradient[0, 0].isnan().nonzero(as_tuple=True)
    for at, centre, taps in ((rows, 10, size[0]), (columns, 20, size[1])):
        assert (at.min(), at.max()) == (centre - taps + 1, centre + taps - 1)


# Ranges of images


def of_ranges(shape, ranges):
    """Images in these ranges, and the ranges as a tensor."""
    ranges = torch.tensor(ranges)
    return [image * ranges.reshape(-1, 1, 1, 1) for image in pair(*shape)], ranges


@SCHEMES
@pytest.mark.parametrize("loss", [L1SSIMLoss, MSSSIMLoss, L1MSSSIMLoss])
def test_ranges_of_images(tiles, scheme, loss, padding):
    tiles(*scheme)
    images, ranges = of_ranges((3, 1, 7, 20), [1.0, 255.0, 0.01])
    options = {"window_size": 3, "padding": padding, "reduction": "none"}
    if loss in (MSSSIMLoss, L1MSSSIMLoss):
        options["weights"] = (0.4, 0.6)
    _, of_x, of_y = step_of_loss(loss, images, (0, 1), "triton", ranges, **options)
    exact = [image.double() for image in images]
    _, exact_x, exact_y = step_of_loss(loss, exact, (0, 1), "reference", ranges, **options)
    # Each image by itself: the gradients of small ranges are large.
    for got, true in ((of_x, exact_x), (of_y, exact_y)):
        assert ((got - true).flatten(1).norm(dim=1) < 3e-6 * true.flatten(1).norm(dim=1)).all()


def step_of_loss(loss, images, wanted, backend, ranges, **options):
    """`step` of a loss whose images have ranges of their own."""

    def function(x, y, *, backend):
        return loss(backend=backend, **options)(x, y, data_range=ranges)

    return step(function, images, wanted, backend)


@pytest.mark.parametrize("wanted", [(), (0,)])
def test_ranges_with_a_mask(tiles, wanted):
    tiles(*FUSED)
    images, ranges = of_ranges((2, 1, 10, 21), [2.0, 0.5])
    options = {"data_range": ranges, "mask": torch.rand(2, 1, 10, 21), **TWO_LEVELS}
    compare(ms_ssim, images, wanted, **options)
    compare(ssim, images, wanted, window_size=3, data_range=ranges, padding="symmetric")


# Terms of a mix


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_terms_have_gradients_of_their_own(tiles, loss, ranged):
    tiles(*FUSED)
    images, ranges = of_ranges((2, 1, 8, 20), [2.0, 0.1])
    options = {"window_size": 3, "data_range": 2.0}
    options |= {"weights": (0.4, 0.6)} if loss is L1MSSSIMLoss else {}
    for name in ("loss", "l1", "structural"):

        def term(x, y, *, backend, name=name):
            own = {"data_range": ranges} if ranged else {}
            return getattr(loss(backend=backend, **options).terms(x, y, **own), name)

        compare(term, images)
        compare(term, images, ())


# The map


@SCHEMES
def test_the_map_and_its_gradients(tiles, scheme, padding):
    tiles(*scheme)
    images = pair(2, 2, 7, 22)
    for wanted in ((), (1,), (0, 1)):
        compare(ssim_map, images, wanted, window_size=(3, 5), padding=padding)


def test_the_map_of_other_layouts_and_ranges(tiles):
    tiles(*FUSED)
    images, ranges = of_ranges((2, 3, 6, 20), [2.0, 0.1])
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    value, *_ = compare(ssim_map, images, window_size=3, data_range=ranges)
    assert value.is_contiguous()
    x, y = images[0].clone().requires_grad_(), images[1]
    value = ssim_map(x, y, window_size=3, backend="triton")
    # An upstream gradient of one value for all, and of each by itself.
    (spread,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    (again,) = torch.autograd.grad(value, x, torch.ones_like(value))
    assert torch.equal(spread, again)
    identical = ssim_map(x, x.detach(), window_size=3, backend="triton")
    assert (identical == 1).all()


def test_the_map_as_torch_sees_it(tiles):
    tiles(*FUSED)
    images = pair(1, 2, 7, 9)
    definition = Definition((gaussian(3, 1.5),) * 2, 0.0, 1.0, 1e-4, 9e-4, "valid")
    arguments = autograd._flattened(*images, NO_AUXILIARY, definition)
    torch.library.opcheck(torch.ops.perceptual_losses.ssim_map.default, (*arguments, "triton"))
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_map_gradients.default,
        (*arguments, torch.rand(1, 2, 5, 7), 2, "triton"),
    )


# Valid pixels


def with_rubbish(shape, share=0.7):
    """Images, and their valid pixels: elsewhere is what may not be read."""
    images, generator = pair(*shape), torch.Generator().manual_seed(4)
    valid = torch.rand(shape[0], 1, *shape[2:], generator=generator) < share
    # A part without any, where windows and means of 2x2 pixels have none.
    valid[..., 1:5, 6:16] = False
    for image, rubbish in zip(images, (float("nan"), float("inf")), strict=True):
        image.masked_fill_(~valid, rubbish)
        image[..., 2, 7] = 1e30
    return images, valid


@SCHEMES
def test_valid_pixels(tiles, scheme, padding):
    tiles(*scheme)
    images, valid = with_rubbish((2, 2, 8, 21))
    for wanted in ((), (1,), (0, 1)):
        _, *gradients = compare(ssim, images, wanted, window_size=3, padding=padding, valid=valid)
        for gradient in gradients:
            assert not gradient[~valid.expand_as(gradient)].any()


@SCHEMES
def test_levels_of_valid_pixels(tiles, scheme, padding):
    tiles(*scheme)
    images, valid = with_rubbish((2, 1, 15, 23))
    options = {"window_size": 3, "weights": (0.2, 0.3, 0.5), "padding": padding, "valid": valid}
    for wanted in ((), (0, 1)):
        _, *gradients = compare(ms_ssim, images, wanted, **options)
        for gradient in gradients:
            assert not gradient[~valid.expand_as(gradient)].any()


@SCHEMES
def test_the_map_of_valid_pixels(tiles, scheme, padding):
    tiles(*scheme)
    images, valid = with_rubbish((2, 2, 8, 21))
    options = {"window_size": (3, 5), "padding": padding, "valid": valid}
    value, *_ = compare(ssim_map, images, **options)
    compare(ssim_map, images, (0,), **options)
    if padding != "valid":
        assert (value[~valid.expand_as(value)] == 1).all()


@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_a_mix_of_valid_pixels_with_a_mask_and_ranges(tiles, loss):
    tiles(*FUSED)
    (x, y), valid = with_rubbish((2, 1, 10, 21), 0.9)
    ranges, mask = torch.tensor([0.5, 2.0]), torch.rand(2, 1, 10, 21)
    options = {"window_size": 3}
    options |= {"weights": (0.4, 0.6)} if loss is L1MSSSIMLoss else {}

    def function(x, y, *, backend):
        extras = {"valid": valid, "mask": mask, "data_range": ranges}
        return loss(backend=backend, **options)(x, y, **extras)

    compare(function, (x, y))


def test_valid_pixels_of_one_channel_and_no_stride(tiles):
    """One row of them for all rows and images."""
    tiles(*FUSED)
    x, y = pair(2, 1, 9, 24)
    valid = torch.rand(24, generator=torch.Generator().manual_seed(5)) < 0.8
    compare(ssim, (x.half().float(), y), window_size=5, valid=valid)
    compare(ms_ssim, (x, y), **TWO_LEVELS, valid=valid.expand(9, 24))


def test_all_pixels_valid_is_as_without(tiles):
    tiles(*FUSED)
    images = pair(1, 2, 9, 20)
    plain = step(ssim, images, (0, 1), "triton", window_size=3)
    valid = step(ssim, images, (0, 1), "triton", window_size=3, valid=torch.ones(9, 20).bool())
    for a, b in zip(plain, valid, strict=True):
        assert (a - b).norm() < 1e-6 * a.norm()
