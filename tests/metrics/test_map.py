"""The map and its gradients, for any upstream gradient."""

import functools
import itertools

import pytest
import torch
from metric_steps import PADDINGS, assert_near, compiles, every_padding, exact_step, pair, step
from torch.autograd import forward_ad

from perceptual_losses import ssim, ssim_map

# On the GPU path tests/gpu/test_definitions.py has these, with tiles that images cross.
pytestmark = pytest.mark.large

OPTIONS = {
    "plain": {},
    "wide": {"sigma": 2.5, "data_range": (-1, 1)},
    "uniform": {"window": "uniform", "window_size": (3, 5), "sample_covariance": True},
}


def call(backend, **options):
    return functools.partial(ssim_map, backend=backend, **{"window_size": 3, **options})


def noise(like, seed=3):
    """An upstream gradient of both signs, some of it zero."""
    generator = torch.Generator().manual_seed(seed)
    upstream = torch.randn(like.shape, generator=generator)
    return upstream * (torch.rand(like.shape, generator=generator) > 0.2)


def region(*shape):
    return torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(1)) < 0.8


# Each is compiled apart: windows by axis with all that lies beside the images have one padding.
@pytest.mark.parametrize(
    ("name", "padding", "extra"),
    [
        *itertools.product(OPTIONS, PADDINGS, ["none"]),
        *itertools.product(["plain", "wide"], PADDINGS, ["both"]),
        ("uniform", "symmetric", "both"),
    ],
)
def test_gradients_are_the_references(backend, precision, sized, name, padding, extra):
    shape = 2, sized(3, 1), 12, 14
    x, y = pair(*shape, dtype=precision.dtype)
    options = {**OPTIONS[name], "padding": padding}
    if extra == "both":
        options["valid"] = region(*shape)
        x, y = (torch.where(options["valid"], image, torch.nan) for image in (x, y))
        options["data_range"] = torch.tensor([1.0, 3.0])
    upstream = noise(call(backend, **options)(x, y))
    got = step(call(backend, **options), x, y, upstream)
    exact = exact_step(call("reference", **options), x, y, upstream)
    assert_near(got, exact, precision)
    # To one of the images, whichever it is.
    for wanted in (0, 1):
        images = [image.clone().requires_grad_(i == wanted) for i, image in enumerate((x, y))]
        value = call(backend, **options)(*images)
        (gradient,) = torch.autograd.grad(value, images[wanted], upstream.to(value.dtype))
        error = (gradient - exact[1 + wanted]).norm()
        assert error <= precision.gradient(1e-11) * exact[1 + wanted].norm()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_bytes(backend, dtype):
    """The map has the dtype of the computation, not that of the images."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(256, (1, 2, 12, 13), generator=generator).byte() for _ in range(2))
    value = call(backend, data_range=255)(x, y.to(dtype))
    exact = call("reference", data_range=255)(x.double(), y.double())
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.float64
@every_padding
def test_derivatives(backend, padding):
    """Each value of the map by each pixel, numerically."""
    x, y = (image.requires_grad_() for image in pair(1, 1, 6, 7))
    valid = region(1, 1, 6, 7)
    for options in ({}, {"valid": valid}, {"window_size": (3, 5)}):
        function = call(backend, padding=padding, **options)
        assert torch.autograd.gradcheck(function, (x, y))
        assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)


def test_a_value_reaches_only_its_window(backend, precision):
    x, y = pair(1, 2, 12, 13, dtype=precision.dtype)
    x.requires_grad_()
    values = call(backend)(x, y)
    (gradient,) = torch.autograd.grad(values[0, 1, 3, 4], x)
    reached = torch.zeros(x.shape, dtype=torch.bool)
    reached[0, 1, 3:6, 4:7] = True
    assert (gradient[reached] != 0).all()
    assert not gradient[~reached].any()


@every_padding
def test_its_mean_is_ssim(backend, precision, sized, padding):
    x, y = pair(2, sized(3, 1), 14, 16, dtype=precision.dtype)
    ranges = torch.tensor([0.5, 2.0])
    for options in ({}, {"data_range": ranges}):
        options |= {"window_size": 3, "padding": padding, "backend": backend}
        got = step(lambda *images, **kw: ssim_map(*images, **kw).mean(), x, y, **options)
        assert_near(got, step(ssim, x, y, **options), precision, 1e-12)


@every_padding
def test_its_mean_over_valid_centres_is_ssim(backend, precision, padding):
    x, y = pair(1, 2, 12, 14, dtype=precision.dtype)
    valid = region(1, 2, 12, 14)
    options = {"window_size": 3, "padding": padding, "valid": valid, "backend": backend}
    centres = valid[..., 1:-1, 1:-1] if padding == "valid" else valid
    value = ssim_map(x, y, **options)[centres.expand(1, 2, -1, -1)].mean().item()
    expected = ssim(x, y, **options).item()
    assert value == pytest.approx(expected, abs=precision.value(1e-13))


def test_any_pooling_trains(backend):
    """The worst tenth of all windows, as one of many poolings of one's own."""
    y, _ = pair(1, 1, 16, 16, dtype=torch.float32)
    x = torch.full_like(y, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.03)
    losses = []
    for _ in range(30):
        values = 1 - call(backend)(x, y).flatten()
        loss = values.topk(len(values) // 10).values.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert losses[-1] < 0.3


def test_backward_passes_repeat(backend, precision):
    x, y = (image.requires_grad_() for image in pair(1, 2, 12, 13, dtype=precision.dtype))
    value = call(backend)(x, y)
    upstream = noise(value).to(value.dtype)
    first = torch.autograd.grad(value, (x, y), upstream, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    second = torch.autograd.grad(value, (x, y), 3 * upstream)
    for once, thrice in zip(kept, second, strict=True):
        torch.testing.assert_close(thrice, 3 * once, rtol=precision.gradient(1e-12), atol=1e-9)


def test_upstream_gradients_of_any_layout(backend, precision):
    x, y = pair(2, 2, 12, 13, dtype=precision.dtype)
    plain = noise(call(backend)(x, y))
    expected = step(call(backend), x, y, plain)
    wide = torch.stack([plain, torch.full_like(plain, 9.0)], -1)[..., 0]
    for upstream in (plain.mT.contiguous().mT, wide, plain.to(memory_format=torch.channels_last)):
        assert_near(step(call(backend), x, y, upstream), expected, precision, 1e-13)
    ones = torch.ones((), dtype=plain.dtype).expand(plain.shape)
    expected = step(call(backend), x, y, torch.ones_like(plain))
    assert_near(step(call(backend), x, y, ones), expected, precision, 1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_and_layouts(backend, dtype):
    x, y = pair(2, 3, 12, 13, dtype=torch.float32)
    x, y = x.to(dtype).to(memory_format=torch.channels_last), y.to(dtype)
    upstream = noise(call(backend)(x, y))
    got = step(call(backend), x, y, upstream)
    exact = exact_step(call("reference"), x, y, upstream)
    assert got[0].dtype == torch.float32
    assert (got[0] - exact[0]).abs().max() < 1e-5
    limit = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}[dtype]
    for gradient, true in zip(got[1:], exact[1:], strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - true).norm() <= limit * true.norm()
    x.requires_grad_()
    call(backend)(x, y).backward(upstream)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    assert (x.grad - got[1]).norm() <= 2 * limit * got[1].norm()


def test_identical_images_have_ones_and_no_gradient(backend):
    x, _ = pair(1, 2, 12, 13, dtype=torch.float32)
    for padding in PADDINGS:
        value, *gradients = step(call(backend, padding=padding), x, x.clone())
        assert (value == 1).all()
        assert not any(gradient.any() for gradient in gradients)


def test_a_spoiled_upstream_gradient_shows(backend):
    """And touches no other plane."""
    x, y = pair(2, 1, 12, 13, dtype=torch.float32)
    upstream = noise(call(backend)(x, y))
    clean = step(call(backend), x, y, upstream)
    upstream[1, 0, 2, 3] = torch.nan
    for got, expected in zip(step(call(backend), x, y, upstream)[1:], clean[1:], strict=True):
        assert got[1].isnan().any()
        assert torch.equal(got[0], expected[0])


@pytest.mark.volumes
@every_padding
def test_volumes(backend, precision, padding):
    shape = 2, 1, 6, 7, 9
    x, y = pair(*shape)
    for options in ({}, {"valid": region(*shape), "data_range": torch.tensor([1.0, 2.0])}):
        options |= {"window_size": 3, "padding": padding}
        upstream = noise(call(backend, **options)(x, y))
        got = step(call(backend, **options), x, y, upstream)
        assert_near(got, step(call("reference", **options), x, y, upstream), precision)
    x, y = (image[:1, ..., :4, :5].requires_grad_() for image in (x, y))
    function = call(backend, window_size=3, padding=padding)
    assert torch.autograd.gradcheck(function, (x, y), fast_mode=True)


@pytest.mark.parametrize("valid", [False, True])
def test_second_derivatives(backend, precision, valid):
    shape = 1, 1, 12, 13
    options = {"valid": region(*shape)} if valid else {}
    found = []
    for path, dtype in ((backend, precision.dtype), ("reference", torch.float64)):
        x, y = (image.to(dtype).requires_grad_() for image in pair(*shape))
        value = call(path, **options)(x, y)
        upstream = noise(value).to(dtype)
        (slope,) = torch.autograd.grad(value, x, upstream, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), (x, y)))
    for got, exact in zip(*found, strict=True):
        assert exact.abs().max() > 1e-3
        assert (got - exact).norm() <= precision.gradient(1e-11) * exact.norm()


# How torch traces forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_forward_mode():
    x, y = pair(1, 1, 12, 13)
    tangent = noise(x).double()
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(call("auto")(forward_ad.make_dual(x, tangent), y)).tangent
    step_size = 1e-6
    ahead, behind = (call("auto")(x + sign * step_size * tangent, y) for sign in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * step_size), rtol=1e-5, atol=1e-7)


@compiles
@pytest.mark.large
@pytest.mark.parametrize(
    ("padding", "extra"), [*((padding, False) for padding in PADDINGS), ("zeros", True)]
)
def test_compiled(backend, precision, padding, extra):
    torch.compiler.reset()
    shape = 2, 2, 12, 14
    x, y = pair(*shape, dtype=torch.float32)
    options = {"valid": region(*shape), "data_range": torch.tensor([1.0, 2.0])} if extra else {}
    function = call(backend, padding=padding, window_size=3)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    upstream = noise(function(x, y))
    got = step(compiled, x, y, upstream, **options)
    assert_near(got, step(function, x, y, upstream, **options), precision, 2e-5)
