"""Contenders for other definitions of SSIM: they compute what the benchmark says they do."""

import importlib.util

import pytest

from benchmarks.speed import measure, report, run
from benchmarks.speed.cases import CASES, DEFINITIONS, HOLES, Case, inputs, ranges, valid_pixels
from benchmarks.speed.contenders import CONTENDERS, OURS

MODULES = {"fast-ssim": "fast_ssim", "fastmri": "fastmri", "monai": "monai"}
"""The contenders that the lock leaves out."""

CONTESTED = [
    (contender, Case(metric, (2, 3, 40, 48), backward))
    for metric in DEFINITIONS
    for contender in CONTENDERS
    if metric in contender.metrics
    for backward in (False, True)
    if not (backward and metric == "SSIM-uint8")
]


@pytest.mark.parametrize(
    ("contender", "case"), CONTESTED, ids=[f"{c.name}, {case.name}" for c, case in CONTESTED]
)
def test_contenders_compute_the_stated_value(contender, case):
    module = MODULES.get(contender.distribution)
    if module and importlib.util.find_spec(module) is None:
        with pytest.raises(ModuleNotFoundError):
            contender.build(case, "cpu")
        return
    if case.backward and contender.distribution in ("fast-ssim", "scikit-image"):
        with pytest.raises(NotImplementedError, match="has no gradient"):
            contender.build(case, "cpu")
        return
    call = contender.build(case, "cpu")
    assert bool(call.deviation) == (contender.name == "perceptual-losses, sample covariance")
    value, gradient = measure.step(call, case, *inputs(case, "cpu"))()
    value = measure.similarity(case, value).item()
    measure.check(value, gradient, measure.expected(case, "cpu"), call.deviation)
    assert (gradient is None) == (not case.backward)


def test_definitions_differ():
    cases = [Case(metric, (2, 3, 40, 48), True) for metric in DEFINITIONS if metric != "SSIM-uint8"]
    values = [measure.expected(case, "cpu").value for case in cases]
    assert len(set(values)) == len(values)
    # Bytes round the images, and are else the same.
    sample, of_bytes = (Case(f"SSIM-{name}", (2, 3, 40, 48), True) for name in ("sample", "uint8"))
    difference = measure.expected(sample, "cpu").value - measure.expected(of_bytes, "cpu").value
    assert 0 < abs(difference) < 1e-2


def test_each_definition_is_measured_beside_the_papers_own():
    for cases in CASES.values():
        sizes = {case.size for case in cases if case.metric == "SSIM-options"}
        assert "8x1x320x320" in sizes
        for metric in DEFINITIONS:
            assert {case.size for case in cases if case.metric == metric} == sizes


def test_what_belongs_to_the_images():
    case = Case("SSIM-valid", (4, 3, 100, 90), True)
    valid = valid_pixels(case, "cpu")
    assert valid.shape == (4, 1, 100, 90)
    assert abs((~valid).float().mean().item() - HOLES) < 0.05
    assert (ranges(case, "cpu") == 1).all()
    own = ranges(case._replace(metric="SSIM-ranges"), "cpu")
    assert len(own.unique()) == 4


def test_settings_are_shown():
    case = Case("SSIM-ranges", (2, 3, 40, 48), False)
    assert OURS.build(case, "cpu").settings == (
        "perceptual_losses.ssim(window='uniform', window_size=7, sample_covariance=True, "
        "backend='auto', data_range=data_range)"
    )


def test_a_report_shows_them_and_the_readme_does_not(tmp_path):
    case = Case("SSIM-uniform", (2, 3, 40, 48), True)
    rows = [
        {"contender": name, "error": None, "median_ms": ms, "ratio": ms, "peak_gradients": 1.0}
        for name, ms in ((OURS.name, 1.0), ("torchmetrics, map", 9.0))
    ]
    result = {"cases": [{**case._asdict(), "size": case.size, "pixels": case.pixels, "rows": rows}]}
    assert "9x torchmetrics, map" in report.summary([result])
    assert "torchmetrics" not in report.summary([result], [case.size])


def test_the_method_says_what_they_are():
    assert "sample covariance" in run.method(run.Options())["definition"]
