from pathlib import Path

import hypothesis
import numpy as np
import pytest
import skimage.data
import torch

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="session", params=["reference", "numba"])
def backend(request: pytest.FixtureRequest) -> str:
    """Every path, by name: each property is asserted on each of them."""
    return request.param


@pytest.fixture(scope="session")
def photo() -> torch.Tensor:
    """A colour photo as (1, 3, 512, 512), float64 in [0, 1]."""
    return torch.from_numpy(np.moveaxis(skimage.data.astronaut(), -1, 0)[None] / 255.0)


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent
