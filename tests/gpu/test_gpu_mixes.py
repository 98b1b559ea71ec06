"""The mean absolute difference on the GPU path, in Triton's interpreter."""

import pytest
import torch
from kernel_steps import PADDINGS, accumulate, needs_triton, pair, request_of, run, settings, step

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss
from perceptual_losses._ssim import autograd
from perceptual_losses._ssim.backend import NO_AUXILIARY
from perceptual_losses._ssim.request import plane_gradient

pytestmark = needs_triton


@pytest.mark.parametrize(("fused", "padding"), [(True, "valid"), (True, "zeros"), (False, "zeros")])
@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
@pytest.mark.interpreted
def test_the_mixes_in_the_interpreter(tiles, loss, fused, padding):
    tiles(16, 1, 8, fused)
    x, y = pair(2, 1, 14, 19)
    y[..., :5] = x[..., :5]
    options = {"window_size": 3, "padding": padding, "data_range": (-1, 1)}
    options |= {"weights": (0.3, 0.7)} if loss is L1MSSSIMLoss else {}
    fast = step(loss(backend="triton", **options), x, y)
    exact = step(loss(backend="reference", **options), x.double(), y.double())
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < 3e-6 * true.norm()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.interpreted
def test_the_sign_in_a_mix_in_the_interpreter(tiles, kind, fused):
    """Exactly that of the difference, however small beside the level of the others, one half."""
    tiles(8, 2, 8, fused)
    x, y = pair(1, 2, 9, 16, dtype=kind)
    x, y = 0.01 * x + 0.5, 0.01 * y
    x[..., 2:5, :8] = y[..., 2:5, :8]
    x[..., 5, :8] = torch.tensor(2.0**-40)
    y[..., 5, :4] = torch.tensor(2.0**-39)
    y[..., 5, 4:8] = 0
    loss = L1SSIMLoss(0.0, window_size=3, backend="triton")
    _, of_x, of_y = step(loss, x, y)
    sign = ((x.float() - y.float()).sign() / x.numel()).to(kind)
    assert sign.unique().numel() == 3
    assert torch.equal(of_x, sign)
    assert torch.equal(of_y, -sign)


ABS_DIFFERENCES = [
    *((1, scheme) for scheme in ((16, 1, 3, True), (8, 2, 4, False))),
    *((gradients, (8, 2, 5, True)) for gradients in (0, 1, 2)),
    (0, (4, 4, 4, True)),
]


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(("gradients", "scheme"), ABS_DIFFERENCES)
@pytest.mark.interpreted
def test_the_mean_abs_difference_in_the_interpreter(tiles, gradients, scheme, padding):
    """Each pixel counts once, whatever the tiles and the map; the rest is as without."""
    tiles(*scheme)
    x, y = pair(1, 1, 8, 13)
    chosen = settings(3, padding)
    means, of_x, of_y = run(x, y, chosen, gradients=gradients, mix=(1.0, 1.0))
    plain, plain_x, plain_y = run(x, y, chosen, gradients=gradients)
    torch.testing.assert_close(means[:1], plain, rtol=0, atol=2e-7)
    exact = (x.double() - y.double()).abs().mean((2, 3))
    assert (means[1] - exact).abs().max() < 1e-7
    assert all(map(torch.equal, [*of_x, *of_y], [*plain_x, *plain_y]))
    mix = {"gradients": gradients, "reduction": "loss", "mix": (0.3, 0.5)}
    mixed, of_x, of_y = run(x, y, chosen, **mix)
    assert abs(mixed - (0.3 * (1 - means[0].double().mean()) + 0.5 * exact.mean())) < 1e-7
    sign = 0.5 / x.numel() * (x.double() - y.double()).sign()
    for found, plain, signs in ((of_x, plain_x, sign), (of_y, plain_y, -sign)):
        for gradient, without in zip(found, plain, strict=True):
            exact = 0.3 * without.double() + signs
            assert (gradient - exact).norm() < 2e-7 * exact.norm()


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.interpreted
def test_the_mean_abs_difference_of_other_dtypes_and_of_nan_in_the_interpreter(tiles, kind):
    tiles(8, 2, 5)
    x, y = pair(2, 1, 8, 13, dtype=kind)
    x, y = x.contiguous(memory_format=torch.channels_last), y.mT.contiguous().mT
    x[1, 0, 7, 12] = float("nan")
    for gradients in (0, 1):
        means = run(x, y, settings(3), levels=2, gradients=gradients, mix=(1.0, 1.0))[0]
        assert (means[2, 0] - (x[0].float() - y[0].float()).abs().mean()).abs() < 1e-7
        assert means[:, 1].isnan().any()
        assert means[2, 1].isnan()


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.interpreted
def test_the_backward_pass_adds_the_sign_in_the_interpreter(tiles, levels, kind):
    tiles(8, 1, 8)
    x, y = pair(2, 2, 7, 11, dtype=kind)
    y[..., 3:5] = x[..., 3:5]
    x, y = x.contiguous(memory_format=torch.channels_last), y.mT.contiguous().mT
    shapes = [(7, 11), (4, 6), (2, 3)][:levels]
    gradients = [torch.rand(2, 2, *shape) for shape in shapes]
    grad = torch.rand(levels + 1, 2, 2)
    doubles = [gradient.double() for gradient in gradients]
    request = request_of(settings(), levels, mix=(1.0, 1.0))
    images = x.double(), y.double()
    exact = autograd._add_up_levels(doubles, grad.double(), images, NO_AUXILIARY, request)
    fine = gradients[0].to(kind)
    accumulate([fine, *gradients[1:]], grad, [], [x, y], plane_gradient(x.shape))
    assert (fine - exact).norm() < (1e-6 if kind == torch.float32 else 0.01) * exact.norm()
