"""The code of the README runs."""

import re

import pytest
import torch


def blocks(root):
    return re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_readme(root):
    x = torch.rand(4, 3, 192, 192, requires_grad=True)
    names = {"x": x, "y": torch.rand(4, 3, 192, 192)}
    found = blocks(root)
    assert len(found) == 3
    for code in found:
        exec(code, names)
    assert x.grad.abs().max() > 0
    assert names["per_image"].shape == (4,)
    assert names["errors"].shape == (4, 3, 192, 192)
    assert 1 - names["errors"].mean().item() == pytest.approx(names["similarity"].item(), abs=0.02)
