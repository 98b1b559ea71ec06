"""Drawn calls on every path, and those that once failed. `python -m tests.fuzz` draws more."""

import json
import os

import fuzz
import pytest
import torch
from hypothesis import HealthCheck, given, settings

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Those of the GPU path run with the others that take the interpreter.
KEPT = [
    pytest.param(kept, marks=[pytest.mark.interpreted] * (kept["backend"] == "triton"))
    for kept in map(json.loads, fuzz.KEPT.read_text().splitlines())
    if INTERPRETED or kept["backend"] != "triton"
]


@pytest.mark.parametrize("kept", KEPT, ids=range(len(KEPT)))
def test_what_once_failed(kept):
    fuzz.check(kept["case"], kept["backend"])


@pytest.mark.large
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(case=fuzz.cases("numba", windows=(3, 11)))
def test_drawn_calls(case):
    fuzz.check(case, "numba")


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
    assert fuzz.check(case, "numba") == "judged"
    call = fuzz.call

    def off(by_value, by_gradient):
        def called(case, backend, *images):
            value, (gradient,) = call(case, backend, *images)
            if backend == "numba":
                value[1] += by_value
                gradient[1, 0, 5, 5] += by_gradient * gradient.abs().max()
            return value, [gradient]

        return called

    for wrong in (off(1e-6, 0), off(0, 3e-6), off(torch.nan, 0), off(0, torch.nan)):
        monkeypatch.setattr(fuzz, "call", wrong)
        with pytest.raises(fuzz.Violation, match=r"is off: .*\n  check\("):
            fuzz.check(case, "numba")
