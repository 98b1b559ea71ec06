"""The notebook of the documentation runs from top to bottom."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.fixture
def figures():
    """No window opens, and no figure stays."""
    plt.switch_backend("agg")
    yield plt
    plt.close("all")


def test_the_notebook_runs(figures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["losses"][-1] < 0.02
    assert len(figures.get_fignums()) == 5
    assert not list(tmp_path.iterdir())


def test_no_outputs_are_stored():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
