"""Pixels that do not exist: windows are means over the valid ones, and nothing else is read."""

import functools
import itertools
import re
import warnings

import definition
import numpy as np
import pytest
import torch
from metric_steps import (
    LOSSES,
    PADDINGS,
    assert_near,
    compiles,
    every_loss,
    every_mix,
    every_padding,
    exact_step,
    pair,
    step,
)
from torch.fx.experimental.proxy_tensor import make_fx

from perceptual_losses import L1SSIMLoss, SSIMLoss, ms_ssim, ssim, ssim_map

GARBAGE = [torch.nan, torch.inf, -torch.inf, 1e30]


def region(*shape, seed=1, share=0.7):
    """Valid pixels, different in each image, with holes, whole blocks of them too."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(shape[0], 1, *shape[2:], generator=generator) < share
    valid[..., :3] = False
    valid[0, ..., -4:, :6] = False
    return valid


def spoiled(image, valid, value):
    return torch.where(valid, image, value)


@every_padding
@every_loss
def test_a_perfect_prediction_has_no_loss_and_no_gradient(backend, sized, name, padding):
    """Whatever lies around the valid pixels, in either image."""
    shape = 2, sized(2, 1), 15, 18
    x, _ = pair(*shape, dtype=torch.float32)
    valid = region(*shape)
    loss = LOSSES[name](backend=backend, padding=padding, reduction="none")
    pairs = itertools.product(GARBAGE, repeat=2) if sized(True, False) else [GARBAGE[:2]]
    for of_x, of_y in pairs:
        images = spoiled(x, valid, of_x), spoiled(x, valid, of_y)
        value, *gradients = step(loss, *images, valid=valid)
        assert value.tolist() == [0, 0]
        for gradient in gradients:
            assert torch.equal(gradient, torch.zeros_like(x))


@every_padding
@pytest.mark.parametrize("masked", [False, True])
@every_loss
def test_no_bit_depends_on_other_pixels(backend, sized, name, masked, padding):
    shape = 2, sized(2, 1), 15, 18
    x, y = pair(*shape, dtype=torch.float32)
    valid = region(*shape)
    options = {"valid": valid}
    if masked:
        options["mask"] = torch.rand(15, 18, generator=torch.Generator().manual_seed(2))
    loss = LOSSES[name](backend=backend, padding=padding, reduction="none")
    clean = step(loss, x, y, **options)
    assert (clean[0] > 0.01).all()
    for gradient in clean[1:]:
        assert (gradient[valid.expand_as(x)] != 0).float().mean() > 0.9
        assert not gradient[~valid.expand_as(x)].any()
    for garbage in sized(GARBAGE, GARBAGE[:1]):
        images = spoiled(x, valid, garbage), spoiled(y, valid, -garbage)
        for got, expected in zip(step(loss, *images, **options), clean, strict=True):
            assert torch.equal(got, expected)


def test_no_bit_of_the_map_depends_on_other_pixels(backend, precision):
    x, y = pair(2, 1, 12, 13, dtype=precision.dtype)
    valid = region(2, 1, 12, 13)
    for padding in PADDINGS:
        options = {"window_size": 3, "padding": padding, "valid": valid, "backend": backend}
        function = functools.partial(ssim_map, **options)
        clean = step(function, x, y)
        got = step(function, spoiled(x, valid, torch.nan), spoiled(y, valid, torch.inf))
        assert all(map(torch.equal, got, clean))
        centres = valid[..., 1:-1, 1:-1] if padding == "valid" else valid
        assert (clean[0][~centres] == 1).all()
        assert (clean[0][centres] < 1).all()


@every_loss
def test_all_pixels_valid_are_the_plain_call(backend, precision, sized, name):
    x, y = pair(2, sized(2, 1), 13, 18, dtype=precision.dtype)
    valid = torch.ones(13, 18, dtype=torch.bool)
    for padding in sized(PADDINGS, ["zeros"]):
        loss = LOSSES[name](backend=backend, padding=padding)
        exact = exact_step(LOSSES[name](backend="reference", padding=padding), x, y)
        assert_near(step(loss, x, y, valid=valid), exact, precision, 1e-12)


def by_definition(function, x, y, valid, mask=None, **options):
    """A function of the definition, of each plane: ``(N, C, ...)``."""
    masks = [{}] * len(x) if mask is None else [{"mask": plane.numpy()} for plane in mask]
    return np.array(
        [
            [
                function(a.numpy(), b.numpy(), valid=v[0].numpy(), **m, **options)
                for a, b in zip(*planes, strict=True)
            ]
            for *planes, v, m in zip(x.double(), y.double(), valid, masks, strict=True)
        ]
    )


@every_padding
@pytest.mark.parametrize("sides", [(12, 14), (11, 13)])
def test_values_are_the_definitions(precision, assert_within_budget, sides, padding):
    shape = (2, 1, *sides)
    x, y = pair(*shape, dtype=precision.dtype)
    valid, mask = region(*shape), torch.rand(2, *sides, generator=torch.Generator().manual_seed(2))
    options = {"window_size": 3, "padding": padding, "sample_covariance": True}
    mask = mask.to(precision.dtype)
    call = {**options, "valid": valid, "mask": mask[:, None], "reduction": "none"}

    def means(*pair, **kw):
        return definition.level_means(*pair, 1, **kw)[0]

    expected = by_definition(means, x, y, valid, mask.double(), **options).mean(1)
    assert_within_budget(functools.partial(ssim, x, y, **call), expected, 1e-11)
    call["weights"] = (0.2, 0.3, 0.5)
    product = functools.partial(definition.ms_ssim, weights=(0.2, 0.3, 0.5))
    expected = by_definition(product, x, y, valid, mask.double(), **options).mean(1)
    assert_within_budget(functools.partial(ms_ssim, x, y, **call), expected, 1e-11)


@pytest.mark.parametrize("padding", ["zeros", "symmetric"])
def test_a_cut_out_image_is_the_image(backend, precision, padding):
    """Windows at the edge of a valid rectangle have means over what lies inside."""
    x, y = pair(1, 1, 9, 10, dtype=precision.dtype)
    valid = torch.zeros(1, 1, 17, 18, dtype=torch.bool)
    valid[..., 4:13, 4:14] = True
    large = [
        torch.full(valid.shape, torch.nan, dtype=x.dtype).masked_scatter(valid, image)
        for image in (x, y)
    ]
    options = {"window_size": 3, "backend": backend}
    values = ssim_map(*large, valid=valid, padding=padding, **options)[valid].view(9, 10)
    planes = [image[0, 0].double().numpy() for image in (x, y)]
    inner = definition.maps(*planes, window_size=3)[0]
    np.testing.assert_allclose(values[1:-1, 1:-1], inner, rtol=0, atol=precision.value(1e-12))
    # In the corner there are 2x2 pixels, the weights of which add up to 1.
    weights = definition.weights_of("gaussian", (3, 3), (1.5, 1.5))[1:, 1:]
    a, b = (plane[:2, :2] for plane in planes)
    mean_a, mean_b = (np.average(plane, weights=weights) for plane in (a, b))
    (var_a, cov), (_, var_b) = np.cov(a.ravel(), b.ravel(), aweights=weights.ravel(), ddof=0)
    corner = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    corner *= (2 * cov + 9e-4) / (var_a + var_b + 9e-4)
    assert values[0, 0].item() == pytest.approx(corner, abs=precision.value(1e-12))


@pytest.mark.parametrize("sigma", [0.4, 0.5])
def test_windows_that_reach_a_valid_pixel_with_almost_no_weight(backend, sigma):
    """Float32 has no reciprocal of the weight in the window's corner."""
    x, y = pair(1, 1, 24, 24, dtype=torch.float32)
    valid = torch.zeros(24, 24, dtype=torch.bool)
    valid[12, 12] = valid[14, 12] = True
    options = {"sigma": sigma, "valid": valid}
    got = step(functools.partial(ssim, backend=backend), x, y, **options)
    exact = exact_step(functools.partial(ssim, backend="reference"), x, y, **options)
    assert abs(got[0] - exact[0]) < 1e-5
    for gradient, true in zip(got[1:], exact[1:], strict=True):
        assert (gradient - true).norm() < 2e-4 * true.norm()


@every_mix
def test_the_l1_term_is_the_mean_over_valid_pixels(backend, precision, name):
    x, y = pair(2, 2, 12, 13, dtype=precision.dtype)
    valid = region(2, 2, 12, 13)
    loss = LOSSES[name](weight=0, data_range=(-1, 1), reduction="none", backend=backend)
    distance = (x - y).abs().mean(1, keepdim=True) / 2
    expected = torch.stack([d[v].mean() for d, v in zip(distance, valid, strict=True)])
    images = spoiled(x, valid, torch.nan), spoiled(y, valid, torch.inf)
    value = loss(*images, valid=valid)
    torch.testing.assert_close(value, expected, rtol=precision.gradient(1e-13), atol=0)
    mask = torch.rand(2, 1, 12, 13, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    weights = mask * valid
    expected = (distance * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    value = loss(*images, valid=valid, mask=mask)
    torch.testing.assert_close(value, expected, rtol=precision.gradient(1e-13), atol=0)


@pytest.mark.parametrize("masked", [False, True])
@every_loss
def test_first_derivatives_are_the_references(backend, precision, sized, name, masked):
    """Odd sides: at the edges of the pyramid some pixels count twice."""
    shape = 2, sized(2, 1), 11, 13
    x, y = pair(*shape, dtype=precision.dtype)
    valid = region(*shape)
    options = {"data_range": torch.tensor([1.0, 2.0]), "valid": valid}
    if masked:
        options["mask"] = torch.rand(11, 13, generator=torch.Generator().manual_seed(2))
    upstream = torch.tensor([2.0, -0.5])
    for padding in sized(PADDINGS, ["symmetric"]):
        kinds = {"padding": padding, "reduction": "none"}
        got = step(LOSSES[name](backend=backend, **kinds), x, y, upstream, **options)
        reference = LOSSES[name](backend="reference", **kinds)
        assert_near(got, exact_step(reference, x, y, upstream, **options), precision)


@pytest.mark.float64
@every_padding
@every_loss
def test_derivatives(backend, name, padding):
    x, y = pair(1, 1, 7, 9)
    valid = region(1, 1, 7, 9)
    valid[..., 2:4, 3:6] = True
    loss = LOSSES[name](backend=backend, padding=padding)
    x, y = spoiled(x, valid, 0.5).requires_grad_(), spoiled(y, valid, -3.0).requires_grad_()
    function = functools.partial(loss, valid=valid)
    assert torch.autograd.gradcheck(function, (x, y), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)


@every_loss
def test_second_derivatives_do_not_depend_on_other_pixels(backend, precision, name):
    valid = region(1, 1, 9, 11)
    loss = LOSSES[name](backend=backend)
    found = []
    for garbage in (0.0, torch.nan):
        images = (spoiled(image, valid, garbage) for image in pair(1, 1, 9, 11))
        x, y = (image.to(precision.dtype).requires_grad_() for image in images)
        (slope,) = torch.autograd.grad(loss(x, y, valid=valid), x, create_graph=True)
        assert not slope[~valid].any()
        found.append(torch.autograd.grad(slope.square().sum(), (x, y)))
    for clean, got in zip(*found, strict=True):
        assert clean.abs().max() > 1e-6
        assert torch.equal(got, clean)


@every_loss
def test_value_and_grad(backend, precision, name):
    x, y = pair(2, 1, 9, 11, dtype=precision.dtype)
    valid = region(2, 1, 9, 11)
    images = spoiled(x, valid, torch.nan), spoiled(y, valid, torch.nan)
    loss = LOSSES[name](backend=backend, reduction="none")
    expected = step(loss, x, y, valid=valid)[:2]
    for _ in range(2):
        assert_near(loss.value_and_grad(*images, valid=valid), expected, precision, 1e-13)


def test_valid_pixels_are_those_of_each_call(backend, precision):
    x, y = pair(1, 1, 9, 11, dtype=precision.dtype)
    loss = SSIMLoss(window_size=3, backend=backend)
    first, second = region(1, 1, 9, 11), region(1, 1, 9, 11, seed=7)
    values = [loss(x, y, valid=valid).item() for valid in (first, second, first)]
    assert values[0] == values[2]
    assert abs(values[0] - values[1]) > 1e-5
    # Any shape that broadcasts, in any memory.
    for valid in (first[0, 0], first[0], first.mT.contiguous().mT):
        assert loss(x, y, valid=valid).item() == values[0]


@pytest.mark.volumes
@every_padding
def test_volumes(backend, precision, padding):
    shape = (2, 1, 6, 7, 9)
    x, y = pair(*shape)
    valid = region(*shape)
    images = spoiled(x, valid, torch.nan), spoiled(y, valid, torch.inf)
    options = {"window_size": 3, "padding": padding}
    expected = by_definition(
        functools.partial(definition.ms_ssim, weights=(0.4, 0.6)), x, y, valid, **options
    )
    for name in LOSSES:
        loss = LOSSES[name](padding=padding, reduction="none", backend=backend)
        got = step(loss, *images, valid=valid)
        clean = step(
            LOSSES[name](padding=padding, reduction="none", backend="reference"), x, y, valid=valid
        )
        assert_near(got, clean, precision)
        if name == "ms_ssim":
            np.testing.assert_allclose(got[0], 1 - expected[:, 0], rtol=0, atol=1e-12)


@compiles
@pytest.mark.large
@every_loss
def test_compiled(backend, precision, name):
    torch.compiler.reset()
    x, y = pair(2, 2, 12, 14, dtype=torch.float32)
    valid = region(2, 2, 12, 14)
    loss = LOSSES[name](backend=backend)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    images = spoiled(x, valid, torch.nan), spoiled(y, valid, torch.inf)
    got = step(compiled, *images, valid=valid)
    assert_near(got, step(loss, x, y, valid=valid), precision, 2e-5)


@compiles
def test_compiled_with_sizes_left_open():
    """As depth maps of many sizes are trained on."""
    torch.compiler.reset()
    loss = SSIMLoss(window_size=3)

    def objective(x, y):
        return loss(x, y, valid=y.isfinite())

    compiled = torch.compile(objective, fullgraph=True, dynamic=True, backend="aot_eager")
    for sides in ((12, 14), (13, 11)):
        x, y = pair(1, 1, *sides, dtype=torch.float32)
        y = spoiled(y, region(1, 1, *sides), torch.nan)
        got, expected = step(compiled, x, y), step(objective, x, y)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


@every_loss
def test_an_image_without_a_valid_pixel_is_refused(backend, name):
    x, y = pair(3, 1, 13, 14, dtype=torch.float32)
    valid = torch.ones(3, 1, 13, 14, dtype=torch.bool)
    valid[1] = False
    loss = LOSSES[name](backend=backend)
    with pytest.raises(ValueError, match=r"mask or valid .*total weight of \[0.0\] to image \[1\]"):
        loss(x, y, valid=valid)
    # Where a mask takes what is left, too.
    valid[1, :, 5:8] = True
    mask = torch.ones(13, 14)
    mask[5:8] = 0
    assert loss(x, y, valid=valid).isfinite()
    with pytest.raises(ValueError, match=r"total weight of \[0.0\] to image \[1\]"):
        loss(x, y, valid=valid, mask=mask)


def test_valid_pixels_on_the_border_alone_are_refused(backend):
    x, y = pair(1, 1, 13, 14, dtype=torch.float32)
    valid = torch.zeros(13, 14, dtype=torch.bool)
    valid[:1] = True
    with pytest.raises(ValueError, match="centres of windows.*padding='symmetric'"):
        ssim(x, y, window_size=3, valid=valid, backend=backend)
    value = ssim(x, y, window_size=3, valid=valid, padding="symmetric", backend=backend)
    assert 0 < value < 1


@pytest.mark.parametrize("function", [ssim, ssim_map, ms_ssim])
def test_what_is_refused(backend, function):
    x, y = pair(2, 3, 40, 44, dtype=torch.float32)
    levels = {"levels": 2} if function is ms_ssim else {}
    call = functools.partial(function, x, y, backend=backend, **levels)
    for dtype in (torch.uint8, torch.float32):
        with pytest.raises(TypeError, match=f"valid is {dtype}: pass booleans, such as valid > 0"):
            call(valid=torch.ones(40, 44, dtype=dtype))
    with pytest.raises(TypeError, match="valid is of type list: pass a torch.Tensor"):
        call(valid=[True])
    for shape in ((2, 3, 40, 44), (2, 40, 44), (44, 40), (3, 1, 40, 44)):
        text = f"valid has shape {shape}: pass one that broadcasts to (2, 1, 40, 44), one boolean"
        with pytest.raises(ValueError, match=re.escape(text)):
            call(valid=torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"valid is on meta and x on cpu.*valid\.to\(x\.device\)"):
        call(valid=torch.ones(40, 44, dtype=torch.bool, device="meta"))


def test_booleans_of_other_bytes():
    """Those of a mask of 0 and 255 that is viewed as booleans: all but 0 is True."""
    x, y = (torch.rand(2, 2, 14, 15, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    numbers = torch.randint(0, 4, (2, 1, 14, 15), generator=torch.Generator().manual_seed(2))
    other, plain = (63 * numbers).to(torch.uint8).view(torch.bool), numbers > 0
    for backend in ("numba", "reference"):
        for loss in (SSIMLoss, L1SSIMLoss):
            values = [loss(window_size=3, backend=backend)(x, y, valid=v) for v in (other, plain)]
            assert values[0] == values[1]


def test_valid_pixels_are_recorded_as_an_input():
    x, y = (torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    valid = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.3
    loss = SSIMLoss(window_size=3)
    expected = loss(x, y, valid=~valid)

    def call(a, b, valid):
        return loss(a, b, valid=valid)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(call, (x, y, valid), check_trace=False)
    for recorded in (traced, make_fx(call)(x, y, valid)):
        torch.testing.assert_close(recorded(x, y, ~valid), expected)
    batch = torch.func.vmap(lambda valid: loss(x, y, valid=valid))(torch.stack([valid, ~valid]))
    torch.testing.assert_close(batch[1], expected)


def test_valid_pixels_under_another_default_device():
    x, y = (torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    valid = x > 0.2
    expected = ssim(x, y, window_size=3, valid=valid)
    with torch.device("meta"):
        assert torch.equal(ssim(x, y, window_size=3, valid=valid), expected)
