"""SSIM and MS-SSIM of the same images at once."""

import pytest
import torch
from metric_steps import few, pair, step

from perceptual_losses import ms_ssim, ssim
from perceptual_losses._evaluator import Options, evaluator
from perceptual_losses._ssim.cpu import level
from perceptual_losses.similarity import ssim_and_ms_ssim

SMALL = {"window_size": 3, "sigma": 1.0}
WEIGHTS = 0.3, 0.3, 0.4
SHAPES = (2, 3, 13, 15), (1, 2, 12, 13, 14)


def small_evaluator(backend, padding="valid"):
    return evaluator(
        Options(
            **{"data_range": 1.0, "window": "gaussian", **SMALL, "k1": 0.01, "k2": 0.03},
            **{"sample_covariance": False, "padding": padding, "reduction": "mean"},
            **{"backend": backend, "weights": WEIGHTS, "normalize": "floor"},
        )
    )


def separate(x, y, backend, padding="valid", **extras):
    options = {**SMALL, "padding": padding, "backend": backend, **extras}
    return ssim(x, y, **options), ms_ssim(x, y, weights=WEIGHTS, **options)


@few("extra", ["none", "mask", "valid"], ["none"])
@pytest.mark.parametrize(
    "shape", [SHAPES[0], pytest.param(SHAPES[1], marks=[pytest.mark.volumes, pytest.mark.large])]
)
@few("padding", ["valid", "symmetric"], ["valid"])
def test_values(backend, precision, padding, shape, extra):
    x, y = pair(*shape, dtype=precision.dtype)
    generator = torch.Generator().manual_seed(3)
    places = torch.rand(shape[0], 1, *shape[2:], generator=generator)
    extras = {"none": {}, "mask": {"mask": places}, "valid": {"valid": places > 0.2}}[extra]
    both = small_evaluator(backend, padding)
    expected = separate(x, y, backend, padding, **extras)
    assert abs(expected[0] - expected[1]) > 1e-3
    for _ in range(2):
        found = both.with_ssim(x, y, **extras)
        near = {"rtol": 0, "atol": precision.value(1e-14)}
        torch.testing.assert_close(torch.stack(found), torch.stack(expected), **near)


def test_gradients(backend, precision):
    x, y = pair(*SHAPES[0], dtype=precision.dtype)
    both = small_evaluator(backend)
    for j in range(2):
        found = step(lambda *images, j=j: both.with_ssim(*images)[j], x, y)
        expected = step(lambda *images, j=j: separate(*images, backend)[j], x, y)
        torch.testing.assert_close(found, expected, rtol=0, atol=precision.value(1e-14))


def test_an_image_that_is_negated_lazily(backend, precision):
    x, y = pair(*SHAPES[0], dtype=precision.dtype)
    lazy = torch.complex(x, -x).conj().imag
    found = torch.stack(small_evaluator(backend).with_ssim(lazy, y))
    expected = torch.stack(separate(x, y, backend))
    torch.testing.assert_close(found, expected, rtol=0, atol=precision.value(1e-14))


@pytest.mark.parametrize("levels", [1, 3])
def test_one_march_for_each_level(levels, monkeypatch):
    images = pair(1, 1, 64, 70)
    marches = []
    march = level.Level.march
    monkeypatch.setattr(
        level.Level, "march", lambda self, *a: marches.append(self.shape) or march(self, *a)
    )
    found = ssim_and_ms_ssim(*images, data_range=2.0, levels=levels)
    assert len(marches) == levels
    expected = ssim(*images, data_range=2.0), ms_ssim(*images, data_range=2.0, levels=levels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
