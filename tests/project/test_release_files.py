"""The files that a release is made of agree."""

import re
from pathlib import Path

import pytest
import yaml

import perceptual_losses
from tests.project import release

ROOT = Path(__file__).parents[2]
GITHUB = sorted((ROOT / ".github").rglob("*.yml"))
RELEASE = ROOT / ".github" / "workflows" / "release.yml"


def test_all_files_have_one_version():
    version, date = re.search(
        r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    ).groups()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert perceptual_losses.__version__ == version == citation["version"]
    assert citation["date-released"] == date


def test_only_the_cache_of_kernels_runs_data():
    sources = (ROOT / "perceptual_losses").rglob("*.py")
    found = {path for path in sources if release.DANGEROUS.search(path.read_text())}
    assert found == {ROOT / release.CACHE}


def test_all_files_have_one_address():
    repository = yaml.safe_load(
        re.search(r'^Repository = (".*")$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    )
    assert f"repo_url: {repository}\n" in (ROOT / "mkdocs.yml").read_text()


def test_a_tag_is_published_only_after_it_was_tried():
    workflow = yaml.safe_load(RELEASE.read_text())
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML reads "on" as a boolean.
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert "make release-check" in [step.get("run") for step in build["steps"]]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    check = next(step["run"] for step in build["steps"] if step.get("name", "").startswith("Check"))
    version = re.search(r"sed -n 's/(.*)/\\1/p' (\S+)\)", check)
    pattern = version[1].replace(r"\(", "(").replace(r"\)", ")")
    found = re.search(pattern, (ROOT / version[2]).read_text(), re.MULTILINE)
    assert found[1] == perceptual_losses.__version__


@pytest.mark.parametrize("path", GITHUB, ids=lambda path: path.stem)
def test_workflows_call_targets_that_exist(path):
    targets = re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    known = {name for line in targets for name in line.split()}
    called = re.findall(r"\bmake ([\w-]+)", path.read_text())
    assert yaml.safe_load(path.read_text())
    assert set(called) <= known
