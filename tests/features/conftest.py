"""Random weights: nothing has to be downloaded."""

import pytest
import torch
from feature_losses import BACKBONES, torchvision_features


@pytest.fixture(scope="module")
def networks():
    return {backbone: torchvision_features(backbone) for backbone in BACKBONES}


@pytest.fixture(scope="module")
def linear():
    generator = torch.Generator().manual_seed(7)
    widths = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}
    return {
        backbone: {
            f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
            for i, width in enumerate(sizes)
        }
        for backbone, sizes in widths.items()
    }
