"""The validation and migration pages say what was measured, and it can be measured again."""

import json
import re

import pytest

from benchmarks.validation import validate
from benchmarks.validation.comparisons import COMPARISONS, PACKAGES
from benchmarks.validation.published import PUBLISHED

AGAIN = [
    "MATLAB: msssim(x, y) = ms_ssim(x, y), odd crops",
    "scikit-image: skimage_gradient(x, y) = inner_gradient(ssim, x, y), gray photos",
    "pytorch-msssim: pytorch_msssim.ms_ssim(x, y, data_range=1) = ms_ssim(x, y), negatives",
    'kornia: kornia.losses.SSIMLoss(11)(x, y) = SSIMLoss(padding="symmetric")(x, y) / 2, crops',
    'fused-ssim: zero_padded_ssim(x, y) = ssim(x, y, padding="zeros"), crops',
    "piqa: piqa.SSIM(n_channels=x.shape[1]).double()(x, y) = ssim(x, y), crops",
]
"""Some that are equal, some that are not; each kind of package and of result."""


def title(row):
    return f"{row['package']}: {row['theirs']} = {row['ours']}, {row['images']}"


@pytest.fixture(scope="module")
def found():
    return json.loads(validate.RESULTS.read_text())


def test_the_pages_are_those_of_the_results(found):
    assert validate.PAGE.read_text() == validate.page(found)
    text = validate.MIGRATING.read_text()
    assert text == validate.filled(text, found)


def test_the_results_are_of_these_comparisons(found):
    assert [row["source"] for row in found["published"]] == [row.source for row in PUBLISHED]
    failed = {row["package"] for row in found["comparisons"] if row["error"]}
    assert failed <= {name for name, package in PACKAGES.items() if package.optional}
    assert not found["environment"]["commit"].endswith("-dirty")
    assert set(validate.SECTIONS) == {comparison.package for comparison in COMPARISONS}
    other = {**found, "comparisons": found["comparisons"][1:] + found["comparisons"][:1]}
    with pytest.raises(ValueError, match="compare anew"):
        validate.page(other)


def test_every_package_has_its_table(found):
    text = validate.MIGRATING.read_text()
    marked = re.findall(r"<!-- generated: (.+?) -->\n\n\| theirs", text)
    assert set(marked) == {row.package for row in COMPARISONS if row.migrating}
    assert len(marked) == text.count("<!-- end -->") == text.count("<!-- generated: ")
    with pytest.raises(ValueError, match="nothing is compared with 'nobody'"):
        validate.filled("<!-- generated: nobody --><!-- end -->", found)


def test_published_numbers():
    for number in PUBLISHED:
        row = validate.published(number)
        assert abs(row["result"] - row["value"]) <= row["tolerance"]


@pytest.mark.parametrize("again", AGAIN)
def test_again(found, again):
    """To a part in a thousand where the packages differ; where they do not, to rounding."""
    (kept,) = [
        row for row in found["comparisons"] if title(row) == again and row["dtype"] == "float64"
    ]
    (comparison,) = [c for c in COMPARISONS if title(c._asdict()) == again and c.dtype == "float64"]
    first = kept["cases"][:2]
    row = validate.measured(comparison, [case["images"] for case in first])
    assert [case["images"] for case in row["cases"]] == [case["images"] for case in first]
    for case, before in zip(row["cases"], first, strict=True):
        assert case.keys() == before.keys()
        for key in case.keys() - {"images"}:
            if before[key] is None:
                assert case[key] is None
            else:
                assert case[key] == pytest.approx(before[key], rel=1e-3, abs=1e-11)


@pytest.mark.parametrize("wrong", ["ssim(x, y) + 1e-6", "ssim(x, y, sigma=1.501)"])
def test_a_wrong_number_shows(wrong):
    (comparison,) = [c for c in COMPARISONS if c.theirs == "piq.ssim(x, y, downsample=False)"]
    row = validate.measured(comparison._replace(ours=wrong), ["camera, noise"])
    assert row["cases"][0]["difference"] > 9e-7
    row |= {"note": ""}
    assert validate.table([row]).splitlines()[-1].split(" | ")[3] == validate._number(
        row["cases"][0]["difference"]
    )


def test_what_cannot_be_compared_is_no_number():
    (comparison, *_) = [c for c in COMPARISONS if c.package == "piq"]
    for wrong in ("ssim_map(x, y)", "ssim(x, y) * float('nan')"):
        with pytest.raises(ValueError, match="or no numbers"):
            validate.measured(comparison._replace(ours=wrong), ["camera, noise"])


def test_a_package_that_is_not_there(monkeypatch):
    (comparison, *_) = [c for c in COMPARISONS if c.package == "MONAI"]
    missing = PACKAGES["MONAI"]._replace(modules=("no_such_package",), flat="")
    monkeypatch.setitem(PACKAGES, "MONAI", missing)
    row = validate.measured(comparison)
    assert row["error"] == "not installed: no_such_package"
    assert validate.table([row]).endswith("| not installed: no_such_package |")
    monkeypatch.setitem(PACKAGES, "MONAI", missing._replace(optional=False))
    with pytest.raises(ImportError):
        validate.measured(comparison)


def index_of(theirs):
    return [comparison.theirs for comparison in COMPARISONS].index(theirs)


def test_the_command(monkeypatch, tmp_path):
    for name in ("RESULTS", "PAGE", "MIGRATING"):
        monkeypatch.setattr(validate, name, tmp_path / "validation" / getattr(validate, name).name)
    index = index_of("ssim_index(x, y)")
    monkeypatch.setattr(validate, "COMPARISONS", COMPARISONS[index : index + 1])
    monkeypatch.setattr(validate, "PUBLISHED", PUBLISHED[1:2])
    monkeypatch.setattr(validate, "SECTIONS", {"MATLAB": "Said."})
    validate.RESULTS.parent.mkdir()
    validate.MIGRATING.write_text("Nothing.\n")
    validate.main([])
    written = json.loads(validate.RESULTS.read_text())
    assert [row["package"] for row in written["comparisons"]] == ["MATLAB"]
    assert written["environment"]["versions"].keys() >= {p.distribution for p in PACKAGES.values()}
    text = validate.PAGE.read_text()
    assert "| `ssim_index(x, y)` | `ssim(x, y)` | 16 crops, float64 |" in text
    validate.PAGE.unlink()
    validate.main(["--from-results"])
    assert validate.PAGE.read_text() == text
