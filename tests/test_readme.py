"""The code of the README runs."""

import re

import pytest
import torch
from torchvision.models import vgg


def blocks(root):
    return re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_readme(root):
    x = torch.rand(4, 3, 192, 192, requires_grad=True)
    vgg16, vgg19 = (vgg.make_layers(vgg.cfgs[name]).state_dict() for name in "DE")
    names = {"x": x, "y": torch.rand(4, 3, 192, 192), "vgg16": vgg16, "vgg19": vgg19}
    found = blocks(root)
    assert len(found) == 4
    for code in found:
        exec(code, names)
    assert x.grad.abs().max() > 0
    assert names["per_image"].shape == (4,)
    assert names["errors"].shape == (4, 3, 192, 192)
    assert 1 - names["errors"].mean().item() == pytest.approx(names["similarity"].item(), abs=0.02)
