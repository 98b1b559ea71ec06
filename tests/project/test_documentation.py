"""The code of the documentation runs, and its numbers are those of the result files."""

import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import perceptual_losses
from benchmarks.gpu import host
from benchmarks.reliability import page as reliability
from benchmarks.speed import report, run
from benchmarks.validation import numerics

ROOT = Path(__file__).parents[2]

PAGES = [
    page
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```python" in page.read_text()
]


def run_code(page):
    """The names after a page's code, pasted from its top into an interpreter that has no names."""
    torch.manual_seed(0)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(code, page.name, "exec"), names)
    return names


# The pages say so too: they have random features because ImageNet's weights are a download.
@pytest.mark.filterwarnings("ignore:the features of .* are random")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_can_be_pasted(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_code(page)
    if page.name == "README.md":
        assert names["similarity"].item() + names["errors"].mean().item() == pytest.approx(
            1, abs=0.02
        )
        assert names["per_image"].shape == (4,)
        assert names["errors"].shape == (4, 3, 192, 192)
        assert names["gradient"].abs().max() > 0


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_every_public_name_has_its_place():
    shown = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: perceptual_losses\.(\w+)$", shown, re.MULTILINE)
    assert sorted(listed) == sorted(perceptual_losses.__all__)


@pytest.mark.parametrize("name", perceptual_losses.__all__)
def test_docstrings_have_their_sections(name):
    """What tools leave out in silence: a section whose name they do not know."""
    member = getattr(perceptual_losses, name)
    if callable(member):
        documented = inspect.getdoc(member)
        assert "\nExamples:\n" in documented
        assert "\nExample:\n" not in documented


@pytest.mark.parametrize("name", perceptual_losses.__all__)
def test_docstrings_explain_each_argument(name):
    member = getattr(perceptual_losses, name)
    if callable(member):
        section = re.search(r"^Args:\n((?: {4}.*\n|\n)*)", inspect.getdoc(member), re.MULTILINE)
        explained = re.findall(r"^ {4}(\w+): ", section[1], re.MULTILINE)
        assert explained == list(inspect.signature(member).parameters)


@pytest.mark.parametrize("name", [n for n in perceptual_losses.__all__ if n.endswith("Loss")])
def test_help_on_a_call_says_what_it_computes(name):
    documented = inspect.getdoc(getattr(perceptual_losses, name).forward)
    assert documented.startswith("The loss")
    assert "\nArgs:\n    x: prediction" in documented
    assert "\nReturns:\n" in documented


def test_numerics_are_those_of_the_results(tmp_path):
    page = Path(shutil.copy(numerics.PAGE, tmp_path))
    numerics.pages(json.loads(numerics.RESULTS.read_text()), page)
    assert page.read_text() == numerics.PAGE.read_text()


def test_reliability_is_that_of_the_results(tmp_path):
    page = Path(shutil.copy(reliability.PAGE, tmp_path))
    reliability.pages(page=page)
    assert page.read_text() == reliability.PAGE.read_text()


def test_host_times_are_those_of_the_results(tmp_path):
    page = Path(shutil.copy(host.PAGE, tmp_path))
    host.pages(page=page)
    assert page.read_text() == host.PAGE.read_text()


def test_speed_is_that_of_the_results():
    results = [json.loads(path.read_text()) for path in sorted(run.RESULTS.glob("*.json"))]
    usual = list(filter(report.is_usual, results))
    page, readme = ((ROOT / name).read_text() for name in ("docs/benchmarks.md", "README.md"))
    assert report.devices(usual) in page
    assert {result["method"]["device"] for result in usual} == report.README_SIZES.keys()
    for device, sizes in report.README_SIZES.items():
        there = [result for result in usual if result["method"]["device"] == device]
        assert report.summary(there) in page
        assert report.summary(there, sizes) in readme
    for path in run.RESULTS.glob("*.json"):
        shown = (ROOT / "docs" / "benchmarks" / f"{path.stem}.md").read_text()
        for case in json.loads(path.read_text())["cases"]:
            assert f"### {case['metric']}, {case['size']}\n" in shown
