"""The values and gradients of the CPU backend: precision, mixes, repeated backward passes."""

import copy
import itertools

import pytest
import torch
from cpu_steps import pair, step

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    _validation,
    ms_ssim,
    ssim,
    ssim_map,
)
from perceptual_losses._runtime import numba_kernels
from perceptual_losses._ssim import dispatch
from perceptual_losses._ssim.cpu.level import Level


def hot(x):
    """The images with one very bright pixel, among those that the local offset is taken from."""
    return x.index_put((torch.tensor(0),) * 4, torch.tensor(1e4))


@pytest.mark.parametrize(
    "related",
    [
        lambda x, y: (x, y),
        lambda x, y: (x, x + 1e-4 * (y - 0.5)),
        lambda x, y: (x, x + 1e-6 * (y - 0.5)),
        lambda x, y: (hot(x), y),
        lambda x, y: (x, hot(y)),
    ],
    ids=["related", "near", "nearest", "hot_x", "hot_y"],
)
def test_the_budget_in_float32(related):
    """The error against float64 is at most twice the reference's, plus one rounding."""
    for seed in range(5):
        x, y = related(*pair(1, 3, 176, 190, seed=seed))
        for function in (ssim, ms_ssim):
            exact = step(function, x.double(), y.double(), backend="reference")
            errors = {}
            for backend in ("numba", "reference"):
                got = step(function, x, y, backend=backend)
                errors[backend] = [
                    ((value.double() - true).norm() / true.norm()).item()
                    for value, true in zip(got, exact, strict=True)
                ]
            for fast, plain in zip(errors["numba"], errors["reference"], strict=True):
                assert fast <= 2 * plain + 6e-8


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "one image": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_the_mixes_in_one_pass(loss, layout):
    x, y = pair(2, 3, 177, 183)
    y[..., :20] = x[..., :20]
    x, y = LAYOUTS[layout](x), y
    fast = step(loss(backend="numba"), x, y)
    plain = step(loss(backend="reference"), x, y)
    exact = step(loss(backend="reference"), x.double(), y.double())
    for got, rough, true in zip(fast, plain, exact, strict=True):
        assert (got - true).norm() <= 2 * (rough - true).norm() + 6e-8 * true.norm()


def test_the_mix_of_volumes_in_one_pass():
    x, y = pair(2, 1, 12, 13, 14, dtype=torch.float64)
    fast, exact = (
        step(L1SSIMLoss(0.5, window_size=3, backend=b), x, y) for b in ("numba", "reference")
    )
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < 1e-13 * true.norm()


def test_what_the_distance_of_the_mixes_sees():
    """Its gradient is the sign of the difference: zero where there is none, NaN where that is."""
    x, y = pair(1, 1, 14, 15, dtype=torch.float64)
    y[0, 0, 3] = x[0, 0, 3]
    _, gradient, opposite = step(L1SSIMLoss(0, window_size=3, backend="numba"), x, y)
    assert torch.equal(gradient, (x - y).sign() / x.numel())
    assert torch.equal(opposite, -gradient)
    x[0, 0, 5, 6] = float("nan")
    value, gradient, _ = step(L1SSIMLoss(0.5, window_size=3, backend="numba"), x, y)
    assert value.isnan()
    assert gradient[0, 0, 5, 6].isnan()


@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_the_mixes_a_second_time(loss):
    x, y = pair(1, 2, 176, 178, dtype=torch.float64)
    x.requires_grad_()
    y.requires_grad_()
    value = loss(window_size=3, backend="numba")(x, y)
    first = [grad.clone() for grad in torch.autograd.grad(value, (x, y), retain_graph=True)]
    second = torch.autograd.grad(3 * value, (x, y))
    for once, thrice in zip(first, second, strict=True):
        assert (thrice - 3 * once).norm() < 1e-12 * once.norm()


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_a_second_backward_through_the_same_graph(function):
    x, y = pair(1, 2, 176, 178)
    x.requires_grad_()
    y.requires_grad_()
    value = function(x, y, backend="numba")
    first = [grad.clone() for grad in torch.autograd.grad(value, (x, y), retain_graph=True)]
    second = torch.autograd.grad(3 * value, (x, y))
    for once, thrice in zip(first, second, strict=True):
        assert (thrice - 3 * once).norm() < 1e-6 * once.norm()


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_a_gradient_is_the_callers_own_to_change(function):
    x = pair(1, 2, 176, 178)[0].requires_grad_()
    value = function(x, pair(1, 2, 176, 178)[1], backend="numba")
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, x)
    assert (second - expected).norm() < 1e-6 * expected.norm()


def test_an_image_against_itself_has_second_derivatives():
    x = pair(1, 1, 16, 16, dtype=torch.float64)[0].requires_grad_()
    (first,) = torch.autograd.grad(ssim(x, x, backend="numba"), x, create_graph=True)
    assert not first.any()
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.abs().max() < 1e-12


def test_a_plain_loss_has_its_gradient_as_it_was_written(monkeypatch):
    """Scaling it would be a pass over memory."""
    scaled = []
    accumulate = Level.accumulate
    monkeypatch.setattr(Level, "accumulate", lambda *given: (scaled.append(1), accumulate(*given)))
    for shape in ((3, 7, 20, 24), (1, 2, 11, 12, 13)):
        x, y = pair(*shape)
        gradients = []
        for backend, times in itertools.product(("reference", "numba"), (1, 0.3)):
            loss = SSIMLoss(backend=backend)(x.requires_grad_(), y)
            gradients += torch.autograd.grad(times * loss, x)
            assert len(scaled) == (backend == "numba" and times != 1)
        scaled.clear()
        for gradient, expected in zip(gradients[2:], gradients[:2], strict=True):
            assert (gradient - expected).norm() < 1e-6 * expected.norm()


def test_a_remembered_call_goes_straight_to_its_kernels(monkeypatch):
    x, y = pair(2, 3, 40, 44)
    options = [{"reduction": reduction, "backend": "numba"} for reduction in ("mean", "none")]
    losses = [kind(**each) for kind in (SSIMLoss, L1SSIMLoss) for each in options]
    losses += [MSSSIMLoss(**each, weights=(0.4, 0.6)) for each in options]
    for loss in losses:
        step(lambda x, y: loss(x, y).sum(), x, y)  # noqa: B023
    monkeypatch.setattr(numba_kernels, "compiled_for", None)
    for loss in losses:
        exact = copy.copy(loss)
        exact.backend = "reference"
        got = step(lambda x, y: loss(x, y).sum(), x, y)  # noqa: B023
        expected = step(lambda x, y: exact(x, y).sum(), x.double(), y.double())  # noqa: B023
        for value, true in zip(got, expected, strict=True):
            assert (value - true).norm() < 1e-6 * true.norm()
    with pytest.raises(TypeError, match="not callable"):
        losses[0](x, y, mask=torch.ones(40, 44))


def test_calls_with_extras_are_remembered_by_all_of_them(monkeypatch):
    x, y = pair(2, 3, 20, 24)
    weights = pair(2, 1, 20, 24)[0]
    extras = [
        {},
        {"mask": weights},
        {"mask": weights > 0.3},
        {"mask": weights, "data_range": torch.tensor([1.0, 2.0])},
        {"valid": weights > 0.3},
        {"data_range": torch.tensor([1.0, 2.0])},
    ]
    exact, losses = (
        [kind(window_size=3, backend=name) for kind in (SSIMLoss, L1SSIMLoss)]
        for name in ("reference", "numba")
    )
    wanted = [[loss(x.double(), y.double(), **e) for e in extras] for loss in exact]
    for turn in range(2):
        for loss, values in zip(losses, wanted, strict=True):
            for given, value in zip(extras, values, strict=True):
                assert loss(x, y, **given) == pytest.approx(value.item(), rel=1e-5), (turn, given)
    monkeypatch.setattr(_validation, "check_images", None)
    for given, value in zip(extras, wanted[0], strict=True):
        assert losses[0](x, y, **given) == pytest.approx(value.item(), rel=1e-5)


def test_images_that_are_converted_are_remembered(monkeypatch):
    x, y = pair(2, 3, 20, 24)
    mask = pair(2, 1, 20, 24)[0]
    of_floats = [(x.half(), y.half()), (x.bfloat16(), y), (x, y.half())]
    of_integers = [((100 * x).short(), (100 * y).short()), ((9 * x).byte(), (9 * y).int())]
    loss, exact = (SSIMLoss(window_size=3, backend=name) for name in ("numba", "reference"))
    steps = [step(exact, *(image.double() for image in images)) for images in of_floats]
    masked = exact(x.double(), y.double(), mask=mask).item()
    options = {"data_range": 100.0, "window_size": 3}
    values = [
        ssim(*(image.double() for image in images), **options, backend="reference")
        for images in of_integers
    ]
    for turn in range(2):
        for images, expected in zip(of_floats, steps, strict=True):
            value, by_x, by_y = step(loss, *images)
            assert (by_x.dtype, by_y.dtype) == (images[0].dtype, images[1].dtype)
            # An image that is the only one with a gradient takes the first place.
            target = images[1].detach().requires_grad_()
            (swapped,) = torch.autograd.grad(loss(images[0], target), target)
            results = value, by_x, by_y, swapped, *loss.value_and_grad(*images)
            for got, true in zip(results, [*expected, expected[2], *expected[:2]], strict=True):
                assert (got - true).norm() < 0.01 * true.norm(), turn
        for images, value in zip(of_integers, values, strict=True):
            got = ssim(*images, **options, backend="numba")
            assert got == pytest.approx(value.item(), rel=1e-5), turn
        got = loss(*of_floats[0], mask=mask)
        assert got.item() == pytest.approx(masked, rel=0.01), turn
        # The second turn has no checks.
        monkeypatch.setattr(_validation, "check_images", None)


def test_an_image_that_is_negated_lazily_finds_its_plan(monkeypatch):
    x, y = pair(1, 1, 16, 16)
    lazy = torch.complex(x, -x).conj().imag
    assert lazy.is_neg()
    loss = SSIMLoss(window_size=3, backend="numba")
    value = loss(lazy, y)
    monkeypatch.setattr(dispatch.autograd, "make_plan", None)
    assert torch.equal(loss(lazy, y), value)
    with pytest.raises(TypeError, match="not callable"):
        loss(lazy[..., 1:], y[..., 1:])


def test_the_form_of_extras_is_checked_in_later_calls_too():
    x, y = pair(2, 1, 16, 16)
    mask = torch.rand(2, 1, 16, 16)
    loss = SSIMLoss(window_size=3, backend="numba")
    extras = {"mask": mask, "valid": mask > 0.2, "data_range": torch.ones(2)}
    for name, tensor in extras.items():
        for _ in range(2):
            loss(x, y, **{name: tensor})
        with pytest.raises(ValueError, match=f"{name} is on meta"):
            loss(x, y, **{name: tensor.to("meta")})
        with pytest.raises((TypeError, ValueError), match=f"{name} (has shape|is torch)"):
            loss(x, y, **{name: tensor[:, None, None].to(torch.complex64)})
        with pytest.raises(ValueError, match=f"{name} has shape"):
            loss(x, y, **{name: tensor.expand(3, *tensor.shape)})


def test_the_terms_of_images_that_are_converted():
    x, y = pair(2, 3, 20, 24)
    loss, exact = (L1SSIMLoss(window_size=3, backend=name) for name in ("numba", "reference"))
    ranges = torch.tensor([1.0, 2.0])
    for given in {}, {"data_range": ranges}, {"mask": pair(2, 1, 20, 24)[0], "data_range": ranges}:
        expected = exact.terms(x.double(), y.double(), **given)
        for _ in range(2):
            for got, true in zip(loss.terms(x.half(), y.half(), **given), expected, strict=True):
                assert got.item() == pytest.approx(true.item(), rel=0.01)


def test_an_image_whose_memory_was_freed_is_refused():
    x, y = pair(1, 1, 16, 16)
    loss = SSIMLoss(backend="numba")
    loss(x, y)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="the memory of an image was freed"):
        loss(x, y)


def test_images_that_begin_anywhere():
    """A kernel that was compiled for aligned images is not the one of the others."""
    x, y = pair(1, 1, 16, 16)
    loss = SSIMLoss(backend="numba")
    expected = step(loss, x, y)
    for offset in (1, 4):
        memory = bytearray(offset) + bytearray(x.numpy().tobytes())
        moved = torch.frombuffer(memory, dtype=torch.float32, offset=offset).view_as(x)
        assert moved.data_ptr() % 16 != x.data_ptr() % 16
        for got, plain in zip(step(loss, moved, y), expected, strict=True):
            torch.testing.assert_close(got, plain, rtol=1e-6, atol=1e-9)


def test_a_mix_beyond_float32_is_infinite():
    """NumPy would warn, which is an error in tests; torch does not."""
    x, y = pair(1, 1, 16, 16)
    for backend in ("numba", "reference"):
        loss = L1SSIMLoss(data_range=1e-24, k1=1e6, k2=1e6, backend=backend)
        assert loss(1e15 * x, y) == float("inf")
        assert loss((1e15 * x).requires_grad_(), y) == float("inf")
    # The sum of each row is a number in float64, and that of all rows is none.
    x = 1e307 * x.double()
    assert L1SSIMLoss(window_size=3).terms(x, torch.zeros_like(x)).l1 == float("inf")


def relaid(tensor):
    """The same values in memory of another layout."""
    padded = torch.empty(*tensor.shape[:-1], tensor.shape[-1] + 1, dtype=tensor.dtype)
    return padded[..., 1:].copy_(tensor)


@pytest.mark.parametrize("relay", [relaid, lambda tensor: relaid(tensor.mT).mT])
@pytest.mark.parametrize("shape", [(2, 3, 45, 46), (1, 2, 22, 23, 24)])
@pytest.mark.parametrize("loss", [SSIMLoss, L1SSIMLoss, MSSSIMLoss, L1MSSSIMLoss])
def test_hooks_that_give_saved_tensors_another_layout(loss, shape, relay):
    options = {"weights": (0.4, 0.6)} if "MSSSIM" in loss.__name__ else {}
    x, y = pair(*shape, dtype=torch.float64)
    function = loss(window_size=3, backend="numba", **options)
    expected = step(lambda x, y: 3 * function(x, y), x, y)
    with torch.autograd.graph.saved_tensors_hooks(relay, lambda tensor: tensor):
        got = step(lambda x, y: 3 * function(x, y), x, y)
    for gradient, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, plain, rtol=1e-12, atol=1e-20)


def test_channels_last_volumes():
    x, y = pair(1, 3, 22, 23, 24, dtype=torch.float64)
    loss = MSSSIMLoss(window_size=3, backend="numba", weights=(0.4, 0.6))
    expected = step(loss, x, y)
    last = torch.channels_last_3d
    got = step(loss, x.contiguous(memory_format=last), y.contiguous(memory_format=last))
    for value, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("upstream", [float("inf"), float("nan"), 3e38])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_upstream_gradients_that_overflow(function, reduction, upstream):
    """NumPy would warn of them, which is an error in tests; torch does not."""
    x, y = pair(2, 2, 176, 178)
    options = {} if function is ssim else {"normalize": "relu"}
    # The coarse levels of the second image are negative, and their derivatives zero.
    image = torch.cat([x[:1], 1 - y[1:]]).requires_grad_()
    value = function(image, y, backend="numba", reduction=reduction, **options)
    (gradient,) = torch.autograd.grad(value, image, torch.full_like(value, upstream))
    (usual,) = torch.autograd.grad(
        function(image, y, backend="numba", reduction=reduction, **options).sum(), image
    )
    overflows = ~(usual[0] * upstream).isfinite()
    assert not gradient[0][overflows].isfinite().any()


LONG = {"window": "uniform", "window_size": 21}


def test_long_windows():
    x, y = pair(1, 1, 26, 25)
    loss, exact = (SSIMLoss(**LONG, backend=name) for name in ("numba", "reference"))
    got, expected = step(loss, x, y), step(exact, x.double(), y.double())
    for value, true in zip(got, expected, strict=True):
        assert (value - true).norm() < 1e-5 * true.norm()


def test_maps_of_long_windows_with_a_pixel_that_is_not_a_number():
    x, y = pair(1, 1, 26, 25)
    x[0, 0, 0, 0] = torch.nan
    got = ssim_map(x, y, **LONG, backend="numba")
    exact = ssim_map(x.double(), y.double(), **LONG, backend="reference")
    assert got.isnan().sum() == 1
    torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=0, equal_nan=True)


def test_coverage_of_long_windows_on_narrow_images():
    # The window has more rows than the image has columns.
    options = {"window": "uniform", "window_size": (65, 3)}
    x, y = pair(1, 1, 70, 8)
    valid = pair(1, 1, 70, 8, seed=1)[0] > 0.3
    loss, exact = (SSIMLoss(**options, backend=name) for name in ("numba", "reference"))
    got = step(loss, x, y, valid=valid)
    expected = step(exact, x.double(), y.double(), valid=valid)
    for value, true in zip(got, expected, strict=True):
        assert (value - true).norm() < 1e-5 * true.norm()


def test_images_at_many_addresses():
    # More than are remembered. All are alive, so no two have the same.
    images = [pair(1, 1, 16, 16, seed=seed) for seed in range(70)]
    loss, exact = SSIMLoss(backend="numba"), SSIMLoss(backend="reference")
    for _ in range(2):
        for x, y in images:
            got, expected = step(loss, x, y), step(exact, x.double(), y.double())
            for value, true in zip(got, expected, strict=True):
                assert (value - true).norm() < 1e-5 * true.norm()
