"""Drawn calls on every path, and those that once failed. `python tests/fuzz/fuzz.py` draws more."""

import json
import os

import fuzz
import fuzz_features
import fuzz_features_cases
import fuzz_structural
import fuzz_structural_cases
import pytest
import torch
from fuzz_judge import Violation, require
from hypothesis import HealthCheck, example, given, settings, strategies

from perceptual_losses import VGGLoss
from perceptual_losses._features import lpips as calibrated
from perceptual_losses._features import winograd as convolution

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Those of the GPU path run with the others that take the interpreter.
KEPT = [
    pytest.param(kept, marks=[pytest.mark.interpreted] * (kept["backend"] == "triton"))
    for kept in map(json.loads, fuzz.KEPT.read_text().splitlines())
    if INTERPRETED or kept["backend"] != "triton"
]


@pytest.mark.parametrize("kept", KEPT, ids=range(len(KEPT)))
def test_what_once_failed(kept):
    _, check = fuzz.KINDS[kept["backend"]]
    check(kept["case"], kept["backend"])


@pytest.mark.large
@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(case=fuzz_structural_cases.cases("numba", windows=(3,)))
def test_drawn_calls(case):
    fuzz_structural.check(case, "numba")


@pytest.mark.large
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(case=fuzz_structural_cases.cases("reference", windows=(3, 11)))
def test_drawn_calls_of_the_reference(case):
    fuzz_structural.check(case, "reference")


def test_a_wrong_number_fails(monkeypatch):
    """In one image of two, by little more than the reference's own error."""
    case = {
        "name": "ssim",
        "shape": [2, 1, 16, 16],
        "content": "related",
        "seed": 0,
        "dtypes": ["float32", "float32"],
        "layouts": ["contiguous", "contiguous"],
        "wants": "x",
        "options": {"data_range": 1.0, "window_size": 3, "sigma": 1.5, "reduction": "none"},
    }
    assert fuzz_structural.check(case, "numba") == "judged"
    call = fuzz_structural.call

    def off(by_value, by_gradient):
        def called(case, backend, *images):
            value, (gradient,) = call(case, backend, *images)
            if backend == "numba":
                value[1] += by_value
                gradient[1, 0, 5, 5] += by_gradient * gradient.abs().max()
            return value, [gradient]

        return called

    for wrong in (off(1e-6, 0), off(0, 3e-6), off(torch.nan, 0), off(0, torch.nan)):
        monkeypatch.setattr(fuzz_structural, "call", wrong)
        with pytest.raises(Violation, match=r"is off: .*\n  check\("):
            fuzz_structural.check(case, "numba")


def test_a_failure_counts_once(monkeypatch):
    """However many calls it takes to find the smallest."""

    def check(case, backend):
        require(case["size"] < 6, case, backend, "is large")
        return "judged"

    numbers = strategies.integers(0, 1000)
    drawn = strategies.fixed_dictionaries({"name": strategies.just("a"), "size": numbers})
    monkeypatch.setitem(fuzz.KINDS, "numbers", (drawn, check))
    tally, (case, said) = fuzz.failing("numbers", 0, 100)
    assert (case["size"], said.startswith("is large")) == (6, True)
    assert tally["a", "failed"] == 1
    assert 1 <= tally.total() <= 100


CONTENT = {
    "name": "VGGLoss",
    "backbone": "vgg16",
    "network": "usual",
    "layers": {"relu1_2": 1.0, "conv2_1": 0.5},
    "trunk": "float32",
    "everywhere": True,
    "shape": [2, 3, 17, 22],
    "content": "related",
    "seed": 0,
    "dtypes": ["float32", "float32"],
    "layouts": ["contiguous", "contiguous"],
    "wants": "xy",
    "options": {"data_range": 1.0, "reduction": "none", "distance": "l2"},
}
HALF = CONTENT | {"trunk": "bfloat16", "name": "StyleLoss"}
HALF["options"] = {"data_range": 1.0, "reduction": "mean", "checkpointing": True}
# Features so small that the offset shows.
CALIBRATED = CONTENT | {"name": "LPIPSLoss", "backbone": "alexnet", "network": "faint"}
CALIBRATED |= {"layers": None, "shape": [2, 3, 31, 33]}
CALIBRATED["options"] = {"data_range": 1.0, "reduction": "none"}


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(case=fuzz_features_cases.cases(deep=False, most=20))
@example(case=CONTENT)
@example(case=HALF)
@example(case=CALIBRATED)
def test_drawn_calls_on_features(case):
    fuzz_features.check(case)


def fails(case, match):
    with pytest.raises(Violation, match=match):
        fuzz_features.check(case)


@pytest.mark.parametrize("case", [CONTENT, HALF], ids=["float32", "bfloat16"])
def test_a_wrong_convolution_fails(case, monkeypatch):
    """In one of a tile's points by a thousandth, or by the rounding of bfloat16 and some more."""
    assert fuzz_features.check(case) == "judged"
    dtype = getattr(torch, case["trunk"])
    basis, by = convolution.BASES[dtype], {torch.float32: 1.001, torch.bfloat16: 1.1}[dtype]
    with monkeypatch.context() as patch:
        filters = basis.filters.clone()
        filters[-1] *= by
        patch.setattr(basis, "filters", filters)
        fails(case, "^x relu1_2 is off")
    with monkeypatch.context() as patch:
        factors = basis.backward.factors.copy()
        factors[-1] *= by
        patch.setattr(basis.backward, "factors", factors)
        fails(case, "^gradient 0 is off")
    run = convolution._run

    def forgetful(x, rectified, matrices, bias, *others):
        return run(x, None, matrices, None if bias is None else 1.01 * bias, *others)

    monkeypatch.setattr(convolution, "_run", forgetful)
    fails(case, "^(x relu1_2|gradient 0) is off")


def test_a_wrong_rectifier_fails(monkeypatch):
    """Only the gradient is wrong: values that were rectified let it through."""
    run = convolution._run
    monkeypatch.setattr(convolution, "_run", lambda x, _, *others: run(x, None, *others))
    fails(CONTENT, "^gradient 0 is off")


@pytest.mark.parametrize("offset", [0.0, 2e-10])
def test_a_wrong_offset_fails(monkeypatch, offset):
    assert fuzz_features.check(CALIBRATED) == "judged"
    monkeypatch.setattr(calibrated, "EPSILON", offset)
    fails(CALIBRATED, "^output 0 is off")


def test_a_wrong_weight_fails(monkeypatch):
    distance = VGGLoss._distance

    def off(self, name, a, b):
        return distance(self, name, a, b) * (1 + 1e-5 * (name == "conv2_1"))

    monkeypatch.setattr(VGGLoss, "_distance", off)
    fails(CONTENT, "^output 0 is off")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_what_is_not_finite_may_not_spread_or_hide(monkeypatch, value):
    case = CONTENT | {"spoiled": [["x", 0.2, value]]}
    assert fuzz_features.check(case) == "judged"
    call = fuzz_features.call
    for wrong in (1.0, torch.nan):

        def called(case, x, y, wrong=wrong):
            (out,), gradients = call(case, x, y)
            out[int(wrong != wrong)] = wrong  # The first image has it.
            return [out], gradients

        with monkeypatch.context() as patch:
            patch.setattr(fuzz_features, "call", called)
            fails(case, "output 0 is off" if wrong != wrong else "hides what is not finite")


def test_what_is_not_refused_fails():
    case = CONTENT | {"wrong": {"distance": "l3"}}
    assert fuzz_features.check(case) == "refused"
    fails(case | {"wrong": {"distance": "l1"}}, "is not refused")
