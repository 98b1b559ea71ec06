"""A mix with the terms that it is made of."""

import pytest
import torch
from metric_steps import (
    LOSSES,
    assert_near,
    both_reductions,
    compiles,
    every_mix,
    every_padding,
    few,
    pair,
    step,
)

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss

SHAPE = 2, 1, 9, 11


def extras(kind):
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, 1, *SHAPE[2:], generator=generator)
    valid = torch.rand(2, 1, *SHAPE[2:], generator=generator) < 0.8
    every = {"mask": mask, "valid": valid, "data_range": torch.tensor([0.5, 3.0])}
    names = {"none": [], "ranges": ["data_range"], "all": list(every)}.get(kind, [kind])
    return {name: every[name] for name in names}


def structural_loss(name):
    return LOSSES[name.removeprefix("l1_")]


@few("extra", ["none", "mask", "valid", "ranges", "all"], ["none", "all"])
@both_reductions
@every_mix
def test_values(backend, precision, name, reduction, extra):
    x, y = pair(*SHAPE, dtype=precision.dtype)
    options, given = {"reduction": reduction, "backend": backend}, extras(extra)
    mix = LOSSES[name](weight=0.3, **options)
    terms = mix.terms(x, y, **given)
    assert terms._fields == ("loss", "l1", "structural")
    loss, l1, structural = terms
    near = {"rtol": 0, "atol": precision.value(1e-14)}
    torch.testing.assert_close(loss, mix(x, y, **given), **near)
    torch.testing.assert_close(loss, 0.7 * l1 + 0.3 * structural, **near)
    expected = structural_loss(name)(**options)(x, y, **given)
    torch.testing.assert_close(structural, expected, **near)
    torch.testing.assert_close(l1, distances(x, y, reduction, **given), **near)
    assert abs(l1 - structural).min() > 1e-3


def distances(x, y, reduction, mask=None, valid=None, data_range=None):
    weights = torch.ones(2, 1, *SHAPE[2:], dtype=x.dtype)
    weights = weights if mask is None else weights * mask.to(x.dtype)
    weights = weights if valid is None else weights * valid
    l1 = ((x - y).abs() * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    l1 = l1 if data_range is None else l1 / data_range.to(x.dtype)
    return l1.mean() if reduction == "mean" else l1


@pytest.mark.parametrize("extra", ["none", "all"])
@both_reductions
@every_mix
def test_gradients(backend, precision, name, reduction, extra):
    """Those of the loss from its terms, and those of each term by itself."""
    x, y = pair(*SHAPE, dtype=precision.dtype)
    y[..., :2, :] = x[..., :2, :]
    given = extras(extra)
    mix = LOSSES[name](weight=0.3, reduction=reduction, backend=backend)
    found = {
        field: step(lambda *images, f=field: getattr(mix.terms(*images, **given), f), x, y)
        for field in ("loss", "l1", "structural")
    }
    structural = structural_loss(name)(reduction=reduction, backend=backend)
    expected = {
        "loss": step(mix, x, y, **given),
        "l1": step(lambda *images: distances(*images, reduction, **given), x, y),
        "structural": step(structural, x, y, **given),
    }
    for field, (_, *gradients) in found.items():
        for gradient, exact in zip(gradients, expected[field][1:], strict=True):
            assert exact.norm() > 0
            error = (gradient - exact).norm()
            assert error <= precision.gradient(1e-11) * exact.norm(), field


@every_mix
def test_terms_share_a_graph(backend, precision, name):
    """Each may be weighed by hand, and the whole goes back once."""
    x, y = pair(*SHAPE, dtype=precision.dtype)
    mix = LOSSES[name](weight=0.3, backend=backend)

    def by_hand(x, y):
        _, l1, structural = mix.terms(x, y)
        return 2 * l1 - 0.5 * structural

    got = step(by_hand, x, y)
    l1 = step(lambda *images: mix.terms(*images).l1, x, y)
    structural = step(lambda *images: mix.terms(*images).structural, x, y)
    for value, a, b in zip(got, l1, structural, strict=True):
        expected = 2 * a - 0.5 * b
        torch.testing.assert_close(value, expected, rtol=precision.gradient(1e-11), atol=1e-8)


@every_padding
@every_mix
def test_identical_images(backend, name, padding):
    x, _ = pair(2, 2, 9, 11, dtype=torch.float32)
    mix = LOSSES[name](padding=padding, backend=backend, reduction="none")
    for given in ({}, extras("all")):
        loss, l1, structural = mix.terms(x, x.clone(), **given)
        assert loss.tolist() == l1.tolist() == structural.tolist() == [0, 0]


@every_mix
def test_the_range_is_the_losss_own(backend, precision, name):
    x, y = pair(*SHAPE, dtype=precision.dtype)
    plain = LOSSES[name](backend=backend).terms(x, y)
    shifted = LOSSES[name](backend=backend, data_range=(-1, 1)).terms(2 * x - 1, 2 * y - 1)
    for value, expected in zip(shifted, plain, strict=True):
        assert value.item() == pytest.approx(expected.item(), abs=precision.value(1e-13))


@every_mix
def test_options_that_change_count(backend, precision, name):
    x, y = pair(*SHAPE, dtype=precision.dtype)
    mix = LOSSES[name](backend=backend)
    before = mix.terms(x, y)
    mix.weight, mix.k2 = 0.9, 0.3
    after = mix.terms(x, y)
    assert torch.equal(after.l1, before.l1)
    assert abs(after.structural - before.structural) > 1e-3
    fresh = LOSSES[name](backend=backend, weight=0.9, k2=0.3).terms(x, y)
    assert all(map(torch.equal, after, fresh))


@pytest.mark.volumes
@every_mix
def test_volumes(backend, name):
    x, y = pair(2, 1, 5, 6, 7)
    mix = LOSSES[name](weight=0.3, backend=backend, reduction="none")
    loss, l1, structural = mix.terms(x, y)
    torch.testing.assert_close(loss, mix(x, y), rtol=0, atol=1e-14)
    torch.testing.assert_close(l1, (x - y).abs().mean((1, 2, 3, 4)), rtol=0, atol=1e-14)
    expected = structural_loss(name)(backend=backend, reduction="none")(x, y)
    torch.testing.assert_close(structural, expected, rtol=0, atol=1e-14)


@pytest.mark.float64
@every_mix
def test_second_derivatives(backend, name):
    x, y = (image.requires_grad_() for image in pair(1, 1, 6, 7))
    mix = LOSSES[name](backend=backend)
    for field in range(3):
        assert torch.autograd.gradgradcheck(
            lambda x, y, i=field: mix.terms(x, y)[i], (x, y), fast_mode=True
        )


@compiles
@pytest.mark.large
@every_mix
def test_compiled(backend, precision, name):
    torch.compiler.reset()
    x, y = pair(2, 2, 12, 14, dtype=torch.float32)
    mix = LOSSES[name](backend=backend)

    def logged(x, y):
        loss, l1, structural = mix.terms(x, y)
        return loss + 2 * l1.detach() + 3 * structural.detach()

    compiled = torch.compile(logged, fullgraph=True, backend="aot_eager")
    assert_near(step(compiled, x, y), step(logged, x, y), precision, 2e-5)


def test_levels_that_do_not_fit_are_warned_of(backend):
    x, y = pair(1, 1, 16, 16, dtype=torch.float32)
    loss = L1MSSSIMLoss(window_size=3, backend=backend)
    for _ in range(2):
        with pytest.warns(UserWarning, match="fit 3 of 5") as caught:
            loss.terms(x, y)
        assert caught[0].filename == __file__


def test_what_is_refused(backend):
    x, y = pair(1, 1, 16, 16, dtype=torch.float32)
    loss = L1SSIMLoss(backend=backend)
    with pytest.raises(ValueError, match="pass equal shapes"):
        loss.terms(x, y[..., :15])
    with pytest.raises(TypeError, match="data_range is 2.0 .float.: pass a tensor .N,."):
        loss.terms(x, y, data_range=2.0)
    loss.weight = 2
    with pytest.raises(ValueError, match="weight=2.0: pass the share"):
        loss.terms(x, y)
    assert not hasattr(SSIMLoss(), "terms")
    assert not hasattr(MSSSIMLoss(), "terms")
